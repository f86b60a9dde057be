"""Several objectives for one network: shares, keys of the draws, modes."""

from __future__ import annotations

import pytest
import torch

from anyorder.errors import UserError
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.objectives import (
    Autoregressive,
    Batch,
    MaskedDiffusion,
    MaskedDiffusionTuning,
    Mixture,
    Permutation,
    summed_loss,
)
from tests.objectives.cases import MASK, learner, ragged

PARTS = (Autoregressive(), Permutation(), MaskedDiffusion(mask_token_id=MASK, random_length=0.0))


def kind(mixture: Mixture, batch: Batch) -> int:
    """Which part made the training inputs of a single sample."""
    inputs = mixture.inputs(batch, 0)
    return 1 if "rank" in inputs.labels else 2 if "sample" in inputs.labels else 0


@pytest.mark.parametrize("by", ["sample", "step"])
def test_shares_are_kept(by: str) -> None:
    """600 draws of shares 3 : 2 : 1, within five standard deviations."""
    mixture = Mixture(parts=PARTS, shares=(3, 2, 1), by=by)
    counts = [0, 0, 0]
    for number in range(600):
        batch = ragged(3, step=number) if by == "step" else ragged(3).replace(sample_B=torch.tensor([number]))
        counts[kind(mixture, batch)] += 1
    for count, expected in zip(counts, (300, 200, 100), strict=True):
        assert abs(count - expected) < 60
    assert all(kind(Mixture(parts=PARTS, shares=(0, 1, 0), by=by), ragged(3, step=n)) == 1 for n in range(9))


@pytest.mark.usefixtures("float64")
def test_the_loss_of_a_mixture_is_that_of_its_parts() -> None:
    model, batch = learner(), ragged(6, 7, 4, 5, 6)
    mixture = Mixture(parts=PARTS, shares=(1, 1, 1))
    total, count = 0.0, 0.0
    for row in range(5):
        alone = batch.only([row])
        inputs = PARTS[kind(mixture, alone)].inputs(alone, 0)
        total, count = total + summed_loss(model, inputs).item(), count + inputs.count
    whole = mixture.inputs(batch, 0)
    assert len({kind(mixture, batch.only([row])) for row in range(5)}) > 1
    assert whole.count == count
    assert summed_loss(model, whole).item() == pytest.approx(total, rel=1e-12)


def test_query_rows_have_a_gradient_in_every_step() -> None:
    """Or processes whose samples all are causal would leave the others waiting for it."""
    model = learner()
    summed_loss(model, Autoregressive().inputs(ragged(5), 0)).backward()
    assert model.query_rows is not None
    for weight in model.query_rows.parameters():
        assert weight.grad is not None
        assert not weight.grad.any()


def test_the_network_learns_all_ways() -> None:
    assert Mixture(parts=PARTS, shares=(1, 1, 1)).modes == (LEFT_TO_RIGHT, ANY_ORDER, diffusion(MASK))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(parts=PARTS, shares=(1,)), "there are 1 shares for 3 objectives: give one for each."),
        (
            lambda: Mixture(parts=PARTS, shares=(1, -1, 2)),
            "shares is [1, -1, 2]: give numbers that are not negative, one of them above 0.",
        ),
        (
            lambda: Mixture(parts=PARTS, shares=(0, 0, 0)),
            "shares is [0, 0, 0]: give numbers that are not negative, one of them above 0.",
        ),
        (
            lambda: Mixture(parts=PARTS, shares=(1, 1, 1), by="batch"),
            "by is 'batch': give one of sample, step.",
        ),
        (
            lambda: Mixture(parts=(Autoregressive(), MaskedDiffusionTuning(mask_token_id=MASK)), shares=(1, 1)),
            "the losses have different units (Autoregressive by token, MaskedDiffusionTuning by sample): draw an "
            "objective by 'step'.",
        ),
        (
            lambda: Mixture(
                parts=(MaskedDiffusion(mask_token_id=MASK), MaskedDiffusion(mask_token_id=MASK, shifted=True)),
                shares=(1, 1),
            ),
            "two objectives teach the same mode with different conventions: give the same.",
        ),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message
