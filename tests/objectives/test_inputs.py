"""Batches and training inputs: parts of them, and several in one pass."""

from __future__ import annotations

import pytest
import torch

from anyorder.errors import UserError
from anyorder.objectives import Batch, TrainingInputs, summed_loss
from tests.objectives.cases import OBJECTIVES, learner, ragged


def test_a_batch_of_lists() -> None:
    batch = Batch.of([[5, 6, 7], [8]], prompt_lengths=[1, 0], first_sample=4, step=3)
    assert batch.ids_BL.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.valid_BL.tolist() == [[True] * 3, [True, False, False]]
    assert batch.loss_mask_BL.tolist() == [[False, True, True], [True, False, False]]
    assert batch.sample_B.tolist() == [4, 5]
    assert list(batch.samples()) == [(4, 3), (5, 1)]
    assert batch.step == 3
    alone = batch.only([1])
    assert alone.ids_BL.tolist() == [[8]]
    assert alone.sample_B.tolist() == [5]
    assert batch.padded(4).valid_BL.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_a_batch_tells_where_documents_begin() -> None:
    batch = Batch.of([[5, 6, 7, 8], [9]]).replace(document_BL=torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0]]))
    assert batch.begins_document.tolist() == [[True, False, True, True], [True, False, False, False]]


@pytest.mark.parametrize(
    ("texts", "prompt_lengths", "message"),
    [
        ([], None, "texts is []: give at least one text, and a token in each."),
        ([[1], []], None, "texts is [[1], []]: give at least one text, and a token in each."),
        ([[1]], [0, 0], "there are 2 prompt lengths for 1 texts: give one for each."),
    ],
)
def test_refusals(texts: list[list[int]], prompt_lengths: list[int] | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        Batch.of(texts, prompt_lengths)
    assert str(error.value) == message


@pytest.mark.usefixtures("float64")
def test_joined_inputs_have_the_losses_of_each_alone() -> None:
    """All objectives in one pass, with 1, 2 and 1 + K rows per token."""
    model = learner()
    all_inputs = [
        objective.inputs(ragged(5 + number % 4, 4, seed=number), number)
        for number, objective in enumerate(OBJECTIVES.values())
    ]
    together = TrainingInputs.join(all_inputs)
    assert together.count == sum(inputs.count for inputs in all_inputs)
    alone = sum(summed_loss(model, inputs).item() for inputs in all_inputs)
    assert summed_loss(model, together).item() == pytest.approx(alone, rel=1e-12)
    assert TrainingInputs.join(all_inputs[:1]) is all_inputs[0]


def test_inputs_move_to_a_device() -> None:
    inputs = OBJECTIVES["permutation"].inputs(ragged(4), 0).to(torch.device("meta"))
    assert {inputs.ids_BR.device.type, inputs.labels["rank"].device.type, inputs.weight_N.device.type} == {"meta"}
