"""Left to right: which row predicts which token, and the loss by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anyorder.objectives import Autoregressive, Batch, summed_loss
from tests.model.networks import network


def packed(*documents: list[int]) -> Batch:
    """One sample of several documents, and a token of padding behind them."""
    ids = [token_id for document in documents for token_id in document]
    number = [number for number, document in enumerate(documents) for _ in document]
    position = [position for document in documents for position in range(len(document))]

    def row(values: list[int]) -> Tensor:
        return torch.tensor([[*values, 0]])

    valid_BL = row([1] * len(ids)).bool()
    return Batch(
        ids_BL=row(ids), valid_BL=valid_BL, loss_mask_BL=valid_BL, document_BL=row(number), position_BL=row(position),
        sample_B=torch.tensor([0]),
    )  # fmt: skip


@pytest.mark.usefixtures("float64")
def test_packed_documents_are_learnt_as_if_alone() -> None:
    model, documents = network(), ([3, 1, 4, 1], [5, 9], [2, 6, 5])
    inputs = Autoregressive().inputs(packed(*documents), seed=0)
    assert inputs.count == 3 + 1 + 2
    expected = torch.zeros(())
    for document in documents:
        log_prob_LV = model(torch.tensor([document])).logits[0].log_softmax(-1)
        expected = expected - sum(log_prob_LV[at - 1, document[at]] for at in range(1, len(document)))
    assert summed_loss(model, inputs).item() == pytest.approx(expected.item(), rel=1e-12)
