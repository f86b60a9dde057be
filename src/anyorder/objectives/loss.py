"""Run a network on training inputs: its predictions, and their loss.

Shape suffixes: B batch, R rows, E hidden size, N predictions of the whole batch, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from anyorder.objectives.cross_entropy import weighted_cross_entropy
from anyorder.objectives.inputs import TrainingInputs

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def predictions(model: Llama, inputs: TrainingInputs) -> Tensor:
    """Compute the scores of every token for each prediction, `[predictions, vocabulary]`.

    The vocabulary is projected on the rows alone that predict something.
    """
    views = model.prepare(inputs.visibility, inputs.labels, n_keys=inputs.n_keys, valid=inputs.valid_BR)
    query_position_BK = inputs.labels["position"][:, inputs.n_keys :]
    hidden_BRE = model.two_streams(inputs.ids_BR[:, : inputs.n_keys], query_position_BK, views)
    return model.logits(hidden_BRE[inputs.sample_N, inputs.row_N])


def summed_loss(model: Llama, inputs: TrainingInputs) -> Tensor:
    """Sum weighted cross-entropies in nats: a scalar. Divided by `inputs.count`, it is the objective's loss."""
    return weighted_cross_entropy(predictions(model, inputs), inputs.target_N, inputs.weight_N)
