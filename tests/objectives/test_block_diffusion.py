"""Block diffusion: one pass over `[noised ; clean]` equals a pass for each block."""

from __future__ import annotations

import pytest
import torch

from anyorder.errors import UserError
from anyorder.objectives import Batch, BlockDiffusion, Stratified, summed_loss
from tests.model.networks import network
from tests.model.oracle import oracle_logits
from tests.objectives.cases import MASK, ragged


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block_length", [1, 3, 20])
def test_loss_equals_that_of_each_block_alone(block_length: int) -> None:
    """The slow twin: clean blocks before, then the noised block, whose tokens see all; CE / p of its own time."""
    model, batch = network(), ragged(7, 5, prompts=True)
    inputs = BlockDiffusion(mask_token_id=MASK, block_length=block_length, times=Stratified()).inputs(batch, seed=5)
    expected = 0.0
    for b, (sample, length) in enumerate(batch.samples()):
        clean, noised = batch.ids_BL[b].tolist(), inputs.ids_BR[b].tolist()
        times = Stratified().draw(5, sample, -(-length // block_length)).tolist()
        for number, begin in enumerate(range(0, length, block_length)):
            end = min(begin + block_length, length)
            text = clean[:begin] + noised[begin:end]
            logits = oracle_logits(
                model, text, range(end), lambda kind, q, k: k // block_length <= q // block_length, end
            )
            for at in range(begin, end):
                if noised[at] == MASK:
                    assert batch.loss_mask_BL[b, at]
                    p = (1 - 1e-3) * times[number] + 1e-3
                    expected -= float(logits[at].log_softmax(-1)[clean[at]]) / p
    assert inputs.count == float((batch.loss_mask_BL & batch.valid_BL).sum())
    assert summed_loss(model, inputs).item() == pytest.approx(expected, rel=1e-10)


def test_documents_have_blocks_and_times_of_their_own() -> None:
    batch = ragged(10, packed=True)  # documents of 4, 4 and 2 tokens: blocks of 3, 1, 3, 1, 2
    objective = BlockDiffusion(mask_token_id=MASK, block_length=3)
    _, probability_BL = objective.draw_masks(batch, 0)
    runs = torch.unique_consecutive(probability_BL[0], return_counts=True)[1].tolist()
    assert runs == [3, 1, 3, 1, 2]


def test_the_rows_are_the_noised_text_and_the_clean_one() -> None:
    inputs = BlockDiffusion(mask_token_id=MASK, block_length=2).inputs(Batch.of([[1, 2, 3]]), 0)
    assert inputs.ids_BR[0, 3:].tolist() == [1, 2, 3]
    assert inputs.labels["position"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert inputs.labels["block"].tolist() == [[0, 0, 1, 0, 0, 1]]
    assert inputs.n_keys == 6
    assert inputs.visibility.draw(inputs.labels, inputs.labels) == (
        "0 # # . . . .\n1 # # . . . .\n2 . . # # # .\n3 . . . # # .\n4 . . . # # .\n5 . . . # # #"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BlockDiffusion(mask_token_id=MASK, block_length=0),
            "block_length is 0: give the tokens of a block, above 0.",
        ),
        (
            lambda: BlockDiffusion(mask_token_id=MASK, block_length=2, eps=2),
            "eps is 2: give a number above 0 and at most 1, such as 1e-3.",
        ),
        (
            lambda: BlockDiffusion(mask_token_id=MASK, block_length=2).inputs(Batch.of([[MASK]]), 0),
            "sample 0 has the mask token 30 at position 0: take it out of the data, or give the token that stands for "
            "masks alone.",
        ),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message
