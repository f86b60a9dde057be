"""A network takes a lesson: what it predicts, and what that costs.

Shape suffixes: B batch, R rows, E hidden size, N predictions of the whole batch, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from anyorder.objectives.cross_entropy import weighted_cross_entropy
from anyorder.objectives.lesson import Lesson

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def predictions(model: Llama, lesson: Lesson) -> Tensor:
    """Scores of every token for each prediction, `[predictions, vocabulary]`.

    The vocabulary is projected on the rows alone that predict something.
    """
    views = model.prepare(lesson.visibility, lesson.labels, n_keys=lesson.n_keys, valid=lesson.valid_BR)
    query_position_BK = lesson.labels["position"][:, lesson.n_keys :]
    hidden_BRE = model.two_streams(lesson.ids_BR[:, : lesson.n_keys], query_position_BK, views)
    return model.logits(hidden_BRE[lesson.sample_N, lesson.row_N])


def summed_loss(model: Llama, lesson: Lesson) -> Tensor:
    """Weighted cross-entropies in nats, summed: a scalar. Divided by `lesson.count`, it is the objective's loss."""
    return weighted_cross_entropy(predictions(model, lesson), lesson.target_N, lesson.weight_N)
