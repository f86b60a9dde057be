"""Experts that are kept equally busy, by a term of the loss or by their biases."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from anyorder.errors import UserError
from anyorder.model.experts import Router, balance_loss, routings_of
from anyorder.model.llama import Llama
from anyorder.objectives import Autoregressive, Batch, summed_loss
from anyorder.training import Training, fit
from anyorder.training.samples import Row
from tests.model.networks import EXPERTS, VOCABULARY, network

ROWS: list[Row] = [
    {"input_ids": torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()}
    for length in (9, 5, 7, 11)
]


def mixture(bias: bool = False) -> Llama:
    """Nearly all rows choose the same experts."""
    chosen = dataclasses.replace(EXPERTS, bias="choice" if bias else "none", groups=1, kept_groups=1)
    model = network("experts", experts=chosen)
    for router in [module for module in model.modules() if isinstance(module, Router)]:
        router.weight.data *= 0.02
        if router.expert_bias is not None:
            router.expert_bias.data[:2] += 0.1
    return model


def train(model: Llama, steps: int, **options: float) -> list[dict[str, float]]:
    return fit(model, Autoregressive(), ROWS, Training(steps=steps, batch_size=4, log_every=1, warmup=0, **options))


def test_the_term_and_the_loads_in_the_log() -> None:
    model = mixture()
    inputs = Autoregressive().inputs(Batch.of([row["input_ids"] for row in ROWS]), 0)
    with torch.no_grad(), routings_of(model) as routings:
        plain = float(summed_loss(model, inputs)) / inputs.count
    term = float(torch.stack([balance_loss(routing) for routing in routings]).mean())
    (entry,) = [entry for entry in train(model, 1, balance_loss=0.5, learning_rate=1e-9) if "loss" in entry]
    assert entry["loss"] == pytest.approx(plain + 0.5 * term, rel=1e-5)
    loads = [entry[f"expert_load_{expert}"] for expert in range(EXPERTS.number)]
    shares = torch.stack([routing.load / routing.load.sum() for routing in routings])
    counted = shares.mean(0) * EXPERTS.number
    assert loads == pytest.approx(counted.tolist())
    assert entry["expert_load_max"] >= max(loads)


@pytest.mark.parametrize("by", ["balance_loss", "balance_bias"])
def test_busy_experts_become_less_busy(by: str) -> None:
    """By the term, through the router; by biases, without any gradient."""
    model = mixture(bias=by == "balance_bias")
    steps = {"balance_loss": 0.5} if by == "balance_loss" else {"balance_bias": 0.01}
    log = train(model, 30, learning_rate=1e-2 if by == "balance_loss" else 1e-9, schedule="constant", **steps)
    most = [entry["expert_load_max"] for entry in log if "loss" in entry]
    assert sum(most[-5:]) < 0.8 * sum(most[:5])


def test_networks_that_cannot_be_balanced() -> None:
    with pytest.raises(UserError) as error:
        fit(network(), Autoregressive(), ROWS, Training(steps=1, balance_loss=0.01))
    assert str(error.value) == (
        "balance_loss is 0.01, but the network has no experts: leave it out, or make some with anyorder convert "
        "--experts."
    )
    with pytest.raises(UserError) as error:
        train(mixture(), 1, balance_bias=0.001)
    assert str(error.value) == (
        "balance_bias is 0.001, but the experts have no biases: give balance_loss, or a network whose experts have "
        "bias 'choice'."
    )
    with pytest.raises(UserError, match=r"^balance_loss is -1.0: give 0 or a number above\.$"):
        Training(steps=1, balance_loss=-1.0)
