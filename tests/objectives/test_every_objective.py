"""What holds for every objective: no leak, no dependence on the batch, gradients that add up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.model.llama import Llama
from anyorder.objectives import (
    Autoregressive,
    Batch,
    BlockDiffusion,
    Objective,
    Permutation,
    TrainingInputs,
    predictions,
    summed_loss,
)
from anyorder.objectives.masked_diffusion import MaskedDiffusionBase
from tests.objectives.cases import END, MASK, OBJECTIVES, learner, ragged

SINGLE = [name for name in OBJECTIVES if "mixture" not in name and name not in ("tuning with end tokens",)]


def may_depend(objective: Objective, batch: Batch, inputs: TrainingInputs, seed: int) -> Tensor:
    """By the definition of each objective, whether a prediction may depend on a token of its sample: `[N, L]`."""
    sample_N, row_N = inputs.sample_N, inputs.row_N
    length = batch.ids_BL.shape[1]
    document_N1 = inputs.labels["document"][sample_N, row_N].unsqueeze(1)
    own_NL = (batch.document_BL[sample_N] == document_N1) & batch.valid_BL[sample_N]
    match objective:
        case Autoregressive():
            return own_NL & (torch.arange(length) <= row_N.unsqueeze(1))
        case Permutation():
            rank_N1 = inputs.labels["rank"][sample_N, row_N].unsqueeze(1)
            return own_NL & (objective.plan(batch, seed).rank_BL[sample_N] < rank_N1)
        case MaskedDiffusionBase():
            shown_BR = (inputs.ids_BR != MASK) & inputs.valid_BR  # shorter than the batch where that was cropped
            shown_NL = torch.zeros_like(own_NL)
            shown_NL[:, : shown_BR.shape[1]] = shown_BR[sample_N]
            if batch.step < objective.opening_steps:
                shown_NL[:, : shown_BR.shape[1]] &= reached(objective, batch, inputs, seed)[sample_N, row_N]
            return own_NL & shown_NL
        case BlockDiffusion():
            block_BL = batch.position_BL // objective.block_length
            block_N1 = block_BL[sample_N, row_N].unsqueeze(1)
            shown_NL = (inputs.ids_BR != MASK)[sample_N, :length]
            return own_NL & ((block_BL[sample_N] < block_N1) | (block_BL[sample_N] == block_N1) & shown_NL)
    raise AssertionError(objective)


def reached(objective: MaskedDiffusionBase, batch: Batch, inputs: TrainingInputs, seed: int) -> Tensor:
    """From where a row hears anything in two layers, under the mask of a network that is being opened: `[B, L, L]`."""
    mask = objective.visibility(batch.step, seed).mask(inputs.labels, inputs.labels, inputs.valid_BR).double()
    return mask @ mask > 0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SINGLE)
@given(lengths=st.lists(st.integers(4, 9), min_size=1, max_size=2), seed=st.integers(0, 99), packed=st.booleans())
@settings(max_examples=5, deadline=None)
def test_a_prediction_depends_on_what_it_may_see_and_on_nothing_else(
    name: str, lengths: list[int], seed: int, packed: bool
) -> None:
    """All pairs: each token is exchanged in turn, and each prediction must change, or stay as it was to the bit."""
    torch.manual_seed(0)
    objective, model = OBJECTIVES[name], learner()
    batch = ragged(*lengths, seed=seed, packed=packed)
    with torch.no_grad():
        inputs = objective.inputs(batch, seed)
        before_NV = predictions(model, inputs)
        allowed_NL = may_depend(objective, batch, inputs, seed)
        for j in range(batch.ids_BL.shape[1]):
            ids_BL = batch.ids_BL.clone()
            ids_BL[:, j] = (ids_BL[:, j] + 1) % END
            other = objective.inputs(batch.replace(ids_BL=ids_BL), seed)
            changed_N = (predictions(model, other) != before_NV).any(-1)
            assert torch.equal(changed_N, allowed_NL[:, j]), j


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layers", ["chunk", "experts"])
@pytest.mark.parametrize("name", SINGLE)
def test_nothing_leaks_through_local_layers_and_experts(name: str, layers: str) -> None:
    """All pairs: no prediction changes by what it may not see. Rows of an expert are multiplied together, and round."""
    torch.manual_seed(0)
    objective, model = OBJECTIVES[name], learner(layers)
    batch = ragged(9, 6, seed=1)
    with torch.no_grad():
        inputs = objective.inputs(batch, 1)
        before_NV = predictions(model, inputs)
        allowed_NL = may_depend(objective, batch, inputs, 1)
        changed = 0
        for j in range(batch.ids_BL.shape[1]):
            ids_BL = batch.ids_BL.clone()
            ids_BL[:, j] = (ids_BL[:, j] + 1) % END
            other = objective.inputs(batch.replace(ids_BL=ids_BL), 1)
            changed_N = ((predictions(model, other) - before_NV).abs() > 1e-9).any(-1)
            assert not (changed_N & ~allowed_NL[:, j]).any(), j
            changed += int(changed_N.sum())
        assert changed


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    lengths=st.lists(st.integers(4, 10), min_size=2, max_size=4), prompts=st.booleans(), packed=st.booleans(),
    cut=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=4, deadline=None)
def test_several_small_batches_are_one_large_one(
    name: str, lengths: list[int], prompts: bool, packed: bool, cut: int, seed: int
) -> None:
    """Summed losses and counts add up, and so do gradients."""
    torch.manual_seed(0)
    objective, model = OBJECTIVES[name], learner()
    batch = ragged(*lengths, seed=seed, prompts=prompts, packed=packed)
    rows = list(range(len(lengths)))
    cut = min(cut, len(rows) - 1)
    whole = objective.inputs(batch, seed)
    parts = [objective.inputs(batch.only(some), seed) for some in (rows[:cut], rows[cut:])]
    assert sum(part.count for part in parts) == pytest.approx(whole.count, rel=1e-15)
    once = gradients(model, [whole], whole.count)
    twice = gradients(model, parts, whole.count)
    for name_, gradient in once.items():
        torch.testing.assert_close(twice[name_], gradient, rtol=1e-9, atol=1e-12, msg=name_)


def gradients(model: Llama, all_inputs: list[TrainingInputs], count: float) -> dict[str, Tensor]:
    model.zero_grad()
    losses = [summed_loss(model, inputs) / max(count, 1) for inputs in all_inputs]
    torch.stack(losses).sum().backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {**found, "loss": torch.stack(losses).sum().detach()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_inputs_are_the_same_again_and_others_for_another_seed(name: str) -> None:
    objective, batch = OBJECTIVES[name], ragged(9, 8, 7, prompts=True)
    first, again, other = (objective.inputs(batch, seed) for seed in (0, 0, 1))
    assert repr(first) == repr(again)
    if name not in ("autoregressive", "permutation from left to right"):
        assert repr(first) != repr(other)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("layers", ["window", "chunk", "experts"])
def test_networks_with_local_layers_learn(name: str, layers: str) -> None:
    model, inputs = learner(layers), OBJECTIVES[name].inputs(ragged(9, 4, prompts=True), 0)
    loss = summed_loss(model, inputs) / inputs.count
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
