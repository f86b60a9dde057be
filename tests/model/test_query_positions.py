"""Why query rows know their position: without it, what is written first cannot depend on where it stands."""

from __future__ import annotations

import math

import pytest
import torch

from anyorder import GroupPlan
from anyorder.likelihood.exact import log_prob
from anyorder.model.modes import ANY_ORDER
from anyorder.objectives import Batch, summed_loss
from anyorder.objectives.permutation import Permutation
from tests.model.networks import network


def first_loss(knows_position: bool) -> float:
    """Nats of the first token of random orders, after learning texts whose tokens follow from their positions."""
    model = network(modes=(ANY_ORDER,), seed=1, initializer_range=0.1, vocab_size=4).train()
    assert model.query_rows is not None
    if not knows_position:
        model.query_rows.position.weight.data.zero_()
        model.query_rows.position.weight.requires_grad_(False)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=2e-2)
    ids = torch.tensor([[0, 1, 2, 3]] * 8)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    for step in range(60):
        batch = Batch(
            ids_BL=ids, valid_BL=everywhere, loss_mask_BL=everywhere, document_BL=torch.zeros_like(ids),
            position_BL=torch.arange(4).expand_as(ids), sample_B=torch.arange(8) + 8 * step,
        )  # fmt: skip
        inputs = Permutation().inputs(batch, seed=0)
        loss = summed_loss(model, inputs) / inputs.count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    orders = [[first, *(at for at in range(4) if at != first)] for first in range(4)]
    scores = log_prob(model.eval(), ids[:4], GroupPlan.from_order(orders)).token_BL
    return -float(scores.diagonal().mean())


def test_the_first_token_of_random_orders_is_learnt_with_its_position_alone() -> None:
    """Blind, one distribution stands for all positions, and nothing is better than ln 4; seeing, all is known."""
    blind = first_loss(knows_position=False)
    assert math.log(4) - 1e-6 <= blind == pytest.approx(math.log(4), abs=0.1)
    assert first_loss(knows_position=True) < 0.1
