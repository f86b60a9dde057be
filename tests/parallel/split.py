"""What is compared in each of several processes: a split network with the whole one."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from anyorder.checkpoints.adapt import adapt
from anyorder.model.config import LayerKind
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.objectives import summed_loss
from anyorder.parallel import Processes, begin, parallelize, reshard, shard, vocabulary
from anyorder.parallel.sizes import Layout, Sizes
from anyorder.training.gradients import by_mesh, clip_grad_norm
from tests.model.networks import network
from tests.objectives.cases import OBJECTIVES, ragged

MIXTURE = Experts(number=4, chosen=2, width=10, score="sigmoid", normalise=True, shared_width=8)

NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("plain", {}),
    "99 tokens": ("plain", {"vocab_size": 99}),
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
"""By name, arguments of `network`; their vocabulary of 31 or 99 is never split evenly."""


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        tensor: processes that share a network; the groups of so many share out samples and weights.
        network: one of `NETWORKS`.
        objective: one of `OBJECTIVES`.
        rows: whether the rows between layers are split, too.
    """

    tensor: int
    network: str
    objective: str = "permutation"
    rows: bool = False


def cases(tensor: int, *, rows: bool = False) -> list[Case]:
    """Each network by one objective, and each objective for one network of experts."""
    others = [objective for objective in OBJECTIVES if objective != "permutation"]
    return [
        *(Case(tensor, name, rows=rows) for name in NETWORKS),
        *(Case(tensor, "experts", objective, rows) for objective in others),
    ]


def built(name: str, **changes: object) -> Llama:
    """One of `NETWORKS`, in float64: its rounding three steps of AdamW, which divides by small numbers, do not show."""
    layers, fields = NETWORKS[name]
    config = network(layers).config.replace(**(fields | changes))
    torch.manual_seed(0)
    return Llama(config).double()


def gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        found.detach(), expected.detach(), rtol=1e-9, atol=1e-9, msg=lambda found: f"{what}: {found}"
    )


def check(cases: list[Case], kv_heads: int = 2) -> None:
    """Compare networks that are split, sharded or both with whole ones."""
    for case in cases:
        processes = begin(case.tensor, "cpu")
        whole = adapt(built(case.network, num_key_value_heads=kv_heads), (LEFT_TO_RIGHT, ANY_ORDER)).train()
        split = parallelize(
            copy.deepcopy(whole), processes.tensor, gather_logits=False, sequence_parallel=case.rows
        )  # fmt: skip
        split.to("cpu")  # as trainings move networks, which swaps weights that are split for others
        if processes.groups > 1:
            shard(split, processes.mesh["data"])
            check_bytes(split, Layout(case.tensor, processes.groups))
        ids = torch.arange(14).view(2, 7) % 31
        with torch.no_grad():
            close(gathered(split(ids).logits), whole(ids).logits, f"logits: {case}")
        reshard(split)
        check_steps(case, whole, split, processes)


def check_bytes(split: Llama, layout: Layout) -> None:
    """The largest part of a process is as large as computed."""
    most = torch.tensor(sum(weight.to_local().nbytes for weight in split.parameters() if isinstance(weight, DTensor)))
    dist.all_reduce(most, dist.ReduceOp.MAX)
    assert int(most) == Sizes(split.config, layout, torch.float64).weights


def check_steps(case: Case, whole: Llama, split: Llama, processes: Processes) -> None:
    """Compare losses, gradients and their norm, and the weights after three steps of AdamW with clipped gradients."""
    optimizers = [
        torch.optim.AdamW([{"params": weights} for weights in by_mesh(model.parameters()).values()], 1e-2, fused=True)
        for model in (whole, split)
    ]
    of_split = dict(split.named_parameters())
    for step in range(3):
        batches = [ragged(9, 5, seed=10 * step + group, prompts=True, step=step) for group in range(processes.groups)]
        inputs = [OBJECTIVES[case.objective].inputs(batch, seed=1) for batch in batches]
        count = max(sum(of_group.count for of_group in inputs), 1)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = torch.stack([summed_loss(whole, of_group) for of_group in inputs]).sum() / count
        loss.backward()
        own = vocabulary.summed_loss(split, inputs[processes.group]) / count
        (own * processes.groups).backward()  # gradients are averaged over the groups
        close(torch.stack(processes.shares(own.detach())).sum(), loss, f"loss of step {step}: {case}")
        for name, expected in whole.named_parameters():
            if expected.grad is not None:
                grad = of_split[name].grad
                assert grad is not None, name
                close(gathered(grad), expected.grad, f"gradient of {name} in step {step}: {case}")
        norm = torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
        close(clip_grad_norm(split.parameters(), 0.5), norm, f"norm of gradients in step {step}: {case}")
        for optimizer in optimizers:
            optimizer.step()
    for name, expected in whole.named_parameters():
        close(gathered(of_split[name]), expected, f"{name} after 3 steps: {case}")
