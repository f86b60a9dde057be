"""Left to right: each token from those before it.

Shape suffixes: B batch, L tokens of a sample, N predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anyorder.model.modes import LEFT_TO_RIGHT, Mode
from anyorder.objectives.inputs import Batch, Objective, TrainingInputs
from anyorder.visibility import causal, documents


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Objective):
    """The next token, by its row's predecessor: mean of `-log p(token | those before it)` over the loss mask.

    The first token of a document has nothing before it and is not predicted. Packed documents do not see each other.
    """

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Left to right."""
        return (LEFT_TO_RIGHT,)

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """Nothing is drawn."""
        sample_N, target_at_N = (batch.loss_mask_BL & batch.valid_BL & ~batch.begins_document).nonzero(as_tuple=True)
        return TrainingInputs(
            ids_BR=batch.ids_BL,
            labels={"position": batch.position_BL, "document": batch.document_BL},
            visibility=causal() & documents(),
            n_keys=batch.ids_BL.shape[1],
            valid_BR=batch.valid_BL,
            sample_N=sample_N,
            row_N=target_at_N - 1,
            target_N=batch.ids_BL[sample_N, target_at_N],
            weight_N=torch.ones(len(sample_N), dtype=torch.float64),
            count=float(len(sample_N)),
        )
