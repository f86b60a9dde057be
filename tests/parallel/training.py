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

NETWORKS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True, "qk_norm": "learned", "attention_bias": True},
    "experts": {"experts": EXPERTS, "layers": (LayerKind(experts=True), LayerKind())},
}
"""By name, fields of a configuration; the vocabulary of 31 is never split evenly."""


def trained(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """The curve and the last weights of a training of 6 steps with 4 samples each, saved after the third."""
    torch.manual_seed(0)
    model = adapt(Llama(network().config.replace(**NETWORKS[name])), (ANY_ORDER,))
    chosen: dict[str, Any] = {"learning_rate": 1e-2, "log_every": 1, "save_every": 3, "evaluate_every": 3, "steps": 6}
    if name == "experts":
        chosen |= {"balance_bias": 0.01}  # balance_loss is of the batch of each process
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
    """Trainings of each network, by the names of their folders."""
    for run, options in runs.items():
        for name in NETWORKS:
            found = trained(name, folder / run / name, **options)
            if dist.get_rank() == 0:
                (folder / run / f"{name}.json").write_text(json.dumps(found))


def assert_same(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """Curves, the loss of validation and the last weights, to 1e-5 of what is expected."""
    assert len(found["curve"]) == len(expected["curve"]) == 6, what
    for key in ("curve", "validation"):
        torch.testing.assert_close(
            torch.tensor(found[key]), torch.tensor(expected[key]), rtol=1e-5, atol=0, msg=lambda said: f"{what}: {said}"
        )
    one, other = torch.tensor(found["weights"]), torch.tensor(expected["weights"])
    assert (one - other).abs().max() < 1e-5 * other.abs().max(), what
