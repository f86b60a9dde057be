"""Trainings in each of several processes, whose curves and weights the first one writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from anyorder.checkpoints.adapt import adapt
from anyorder.model.config import LayerKind
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from anyorder.objectives import Permutation
from anyorder.parallel import gathered, is_split
from anyorder.parallel.sizes import Layout, Sizes
from anyorder.training import Training, fit
from tests.model.networks import network
from tests.training.test_engine import Ragged, curve, weights

EXPERTS = Experts(number=4, chosen=2, width=10, score="sigmoid", normalise=True, shared_width=8, bias="choice")

ALL: dict[str, Any] = {
    "tie_word_embeddings": True, "qk_norm": "learned", "attention_bias": True, "attention_output_bias": True,
    "mlp_bias": True, "experts": EXPERTS, "layers": (LayerKind(experts=True), LayerKind()),
}  # fmt: skip
"""Fields of a configuration: all that is split in ways of its own; the vocabulary of 31 is never split evenly."""


def trained(folder: Path, **options: Any) -> dict[str, Any]:
    """The curve and the last weights of a training of 6 steps with 4 samples each, saved after the third.

    In float64, where AdamW does not make much of rounding; gradients are clipped in each step.
    """
    torch.manual_seed(0)
    model = adapt(Llama(network().config.replace(**ALL)), (ANY_ORDER,)).double()
    chosen: dict[str, Any] = {
        "learning_rate": 1e-2, "log_every": 1, "save_every": 3, "evaluate_every": 3, "steps": 6,
        "balance_bias": 0.01,  # balance_loss is of the batch of each process
    }  # fmt: skip
    resume = options.pop("resume", False)
    log = fit(
        model, Permutation(), Ragged(), Training(**chosen | options), folder=folder, resume=resume,
        validation={"text": (Permutation(), Ragged(5))},
    )  # fmt: skip
    held = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    tensor, groups = options.get("tensor_parallel", 1), training_groups(options)
    assert sum(part.numel() for part in held) <= Sizes(model.config, Layout(tensor, groups), model.dtype).parameters
    whole = gathered(model) if is_split(model) else model
    return {
        "curve": curve(log), "validation": log[-1]["eval_text"],
        "weights": [] if dist.is_initialized() and dist.get_rank() else weights(whole).tolist(),
    }  # fmt: skip


def training_groups(options: dict[str, Any]) -> int:
    """Over how many groups of processes weights are sharded."""
    return dist.get_world_size() // options.get("tensor_parallel", 1) if options.get("fsdp") else 1


def several(runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """Trainings by the names of their folders."""
    for run, options in runs.items():
        found = trained(folder / run, **options)
        if dist.get_rank() == 0:
            (folder / f"{run}.json").write_text(json.dumps(found))


def assert_same(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """Curves, the loss of validation and the last weights, to 1e-9 of what is expected."""
    assert len(found["curve"]) == len(expected["curve"]) == 6, what
    for key in ("curve", "validation", "weights"):
        one, other = (torch.tensor(record[key], dtype=torch.float64) for record in (found, expected))
        assert (one - other).abs().max() < 1e-9 * other.abs().max(), f"{what}: {key}"
