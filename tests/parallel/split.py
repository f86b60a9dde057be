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
from anyorder.parallel import begin, parallelize, shard, vocabulary
from anyorder.parallel.sizes import Layout, Sizes
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


def built(name: str, **changes: object) -> Llama:
    """One of `NETWORKS`, in float64: its rounding three steps of AdamW, which divides by small numbers, do not show."""
    layers, fields = NETWORKS[name]
    config = network(layers).config.replace(**(fields | changes))
    torch.manual_seed(0)
    return Llama(config).double()


def pair(name: str, processes: DeviceMesh, kv_heads: int = 2, *, rows: bool = False) -> tuple[Llama, Llama]:
    """The whole network, and the same split, with or without the rows between layers."""
    whole = adapt(built(name, num_key_value_heads=kv_heads), (LEFT_TO_RIGHT, ANY_ORDER)).train()
    split = parallelize(copy.deepcopy(whole), processes, gather_logits=False, sequence_parallel=rows)
    return whole, split


def gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        found.detach(), expected.detach(), rtol=1e-9, atol=1e-9, msg=lambda found: f"{what}: {found}"
    )


def forward_and_steps(
    names: list[str], objectives: list[str], kv_heads: int = 2, *, rows: bool = False
) -> None:  # fmt: skip
    """Logits, losses, gradients, and weights after three steps of AdamW."""
    processes = mesh()
    for name in names:
        whole, split = pair(name, processes, kv_heads, rows=rows)
        ids = torch.arange(14).view(2, 7) % 31
        with torch.no_grad():
            close(gathered(split(ids).logits), whole(ids).logits, f"logits of {name}")
        for objective in objectives:
            whole, split = pair(name, processes, kv_heads, rows=rows)
            optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False) for model in (whole, split)]
            for step in range(3):
                inputs = OBJECTIVES[objective].inputs(ragged(9, 5, seed=step, prompts=True, step=step), seed=1)
                losses = []
                for model, loss_of, optimizer in zip(
                    (whole, split), (summed_loss, vocabulary.summed_loss), optimizers, strict=True
                ):
                    optimizer.zero_grad()
                    losses.append(loss_of(model, inputs) / max(inputs.count, 1))
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


def split_and_sharded(tensor: int) -> None:
    """Three steps over samples that groups of processes share out; what each holds is its part."""
    processes = begin(tensor, "cpu")
    groups = processes.mesh["data"].size()
    for name in ("tied", "norms of heads, biases", "experts"):
        whole, split = pair(name, processes.tensor)
        shard(split, processes.mesh["data"])
        bytes_here = sum(weight.to_local().nbytes for weight in split.parameters() if isinstance(weight, DTensor))
        most = torch.tensor(bytes_here)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        assert int(most) == Sizes(split.config, Layout(tensor, groups), torch.float64).weights, name
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False) for model in (whole, split)]
        for step in range(3):
            batches = [ragged(9, 5, seed=10 * step + group, step=step) for group in range(groups)]
            inputs = [OBJECTIVES["permutation"].inputs(batch, seed=1) for batch in batches]
            count = sum(of_group.count for of_group in inputs)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = sum(summed_loss(whole, of_group) for of_group in inputs) / count
            assert isinstance(loss, Tensor)
            loss.backward()
            own = inputs[processes.mesh["data"].get_local_rank()]
            # Gradients are averaged over the groups.
            (vocabulary.summed_loss(split, own) * groups / count).backward()
            norms = (
                [
                    gathered(torch.nn.utils.clip_grad_norm_(parameters, 0.5, foreach=False))
                    for parameters in (whole.parameters(), split.parameters())
                ]
                if tensor == 1
                else []
            )
            for found in norms[1:]:
                close(found, norms[0], f"norm of the gradient of {name}")
            for optimizer in optimizers:
                optimizer.step()
        of_split = dict(split.named_parameters())
        for parameter, expected in whole.named_parameters():
            close(gathered(of_split[parameter]), expected, f"{parameter} after 3 steps of {name}")
