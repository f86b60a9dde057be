"""What is compared in each of several processes: a split network with the whole one."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from anyorder.checkpoints.adapt import adapt
from anyorder.model.config import LayerKind
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.objectives import summed_loss
from anyorder.parallel import parallelize
from tests.model.networks import network
from tests.objectives.cases import OBJECTIVES, ragged

MIXTURE = Experts(number=4, chosen=2, width=10, score="sigmoid", normalise=True, shared_width=8)

NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("plain", {}),
    "tied": ("plain", {"tie_word_embeddings": True}),
    "norms of heads, biases": ("plain", {
        "qk_norm": "learned", "attention_bias": True, "attention_output_bias": True, "mlp_bias": True,
    }),
    "norm of all heads": ("plain", {"qk_norm": "learned-full-width"}),
    "kinds of layers": ("chunk", {"qk_norm": "weightless"}),
    "experts": ("plain", {
        "experts": MIXTURE, "layers": (LayerKind(experts=True), LayerKind(experts=True, rotary=False)),
    }),
    "experts, weighted input": ("plain", {
        "experts": Experts(number=4, chosen=1, width=10, weighted="input", score="sigmoid"),
        "layers": (LayerKind(), LayerKind(experts=True)),
    }),
}  # fmt: skip
"""By name, arguments of `network`; their vocabulary of 31 is never split evenly."""


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tensor",))


def pair(name: str, processes: DeviceMesh, kv_heads: int = 2) -> tuple[Llama, Llama]:
    """The whole network, and the same split."""
    layers, changes = NETWORKS[name]
    config = network(layers).config.replace(num_key_value_heads=kv_heads, **changes)
    torch.manual_seed(0)
    whole = adapt(Llama(config), (LEFT_TO_RIGHT, ANY_ORDER)).double().train()
    return whole, parallelize(copy.deepcopy(whole), processes)


def gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(found: Tensor, expected: Tensor, what: str) -> None:
    """In float64, whose rounding three steps of AdamW, which divides by small numbers, do not show."""
    torch.testing.assert_close(
        found.detach(), expected.detach(), rtol=1e-9, atol=1e-9, msg=lambda found: f"{what}: {found}"
    )


def forward_and_steps(names: list[str], objectives: list[str], kv_heads: int = 2) -> None:
    """Logits, losses, gradients, and weights after three steps of AdamW."""
    processes = mesh()
    for name in names:
        whole, split = pair(name, processes, kv_heads)
        ids = torch.arange(14).view(2, 7) % 31
        with torch.no_grad():
            close(split(ids).logits, whole(ids).logits, f"logits of {name}")
        for objective in objectives:
            whole, split = pair(name, processes, kv_heads)
            optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False) for model in (whole, split)]
            for step in range(3):
                inputs = OBJECTIVES[objective].inputs(ragged(9, 5, seed=step, prompts=True, step=step), seed=1)
                losses = []
                for model, optimizer in zip((whole, split), optimizers, strict=True):
                    optimizer.zero_grad()
                    losses.append(summed_loss(model, inputs) / max(inputs.count, 1))
                    losses[-1].backward()
                what = f"{name}, {objective}, step {step}"
                close(losses[1], losses[0], f"loss of {what}")
                of_split = dict(split.named_parameters())
                for parameter, expected in whole.named_parameters():
                    if expected.grad is not None:
                        grad = of_split[parameter].grad
                        assert grad is not None, parameter
                        close(gathered(grad), expected.grad, f"gradient of {parameter}: {what}")
                for optimizer in optimizers:
                    optimizer.step()
            for parameter, expected in whole.named_parameters():
                close(gathered(of_split[parameter]), expected, f"{parameter} after 3 steps: {name}, {objective}")
