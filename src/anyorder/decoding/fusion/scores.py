"""How good the network finds each phrasing, to weigh phrasings or to keep the best of them.

Shape suffixes: R tokens of a phrasing, E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from anyorder.decoding.fusion.prefill import prefill, read_joined
from anyorder.decoding.fusion.question import Fusion, Question
from anyorder.errors import UserError
from anyorder.utils.numbers import check_positive
from anyorder.utils.ragged import log_probs_of

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


@torch.no_grad()
def confidence(model: Llama, questions: Sequence[Question]) -> list[list[float]]:
    """How probable the most probable first token of the answer is, behind the phrasing alone."""
    alone = [member for question in questions for member in question.members()]
    highest = iter(prefill(model, alone, Fusion(), 0).logits.softmax(-1).amax(-1).tolist())
    return [[next(highest) for _ in question.segments] for question in questions]


@torch.no_grad()
def likelihood(model: Llama, questions: Sequence[Question]) -> list[list[float]]:
    """How probable the tokens of the phrasing are behind the prefix: their geometric mean.

    Without a prefix the first token is not counted.
    """
    joined = read_joined(model, [question.layout("shared") for question in questions], 0)
    found = []
    for question, before_1E, segments in zip(questions, joined.before, joined.segments, strict=True):
        of_question = []
        for ids, rows_RE in zip(question.segments, segments, strict=True):
            logits_RV = model.logits(torch.cat((before_1E, rows_RE[:-1])))
            counted = torch.tensor(ids[len(ids) - len(logits_RV) :], dtype=torch.long, device=model.device)
            log_probs_R = log_probs_of(logits_RV, counted)
            uniform = -math.log(model.config.vocab_size)
            of_question.append(math.exp(float(log_probs_R.mean()) if len(counted) else uniform))
        found.append(of_question)
    return found


SCORES: dict[str, Callable[[Llama, Sequence[Question]], list[list[float]]]] = {
    "confidence": confidence,
    "likelihood": likelihood,
}
"""By name."""


def weigh(model: Llama, questions: Sequence[Question], by: str) -> list[Question]:
    """The questions with such weights.

    Raises:
        UserError: the name is unknown.
    """
    if by not in SCORES:
        raise UserError(f"weights is {by!r}: give numbers, or one of {', '.join(SCORES)}.")
    smallest = torch.finfo(torch.float32).tiny  # a weight of 0 would have no logarithm
    return [
        replace(question, weights=tuple(max(score, smallest) for score in scores))
        for question, scores in zip(questions, SCORES[by](model, questions), strict=True)
    ]


def best(question: Question, keep: int) -> list[int]:
    """Which so many phrasings have the highest weights, in their order; of equals the first ones.

    Of a question that has no more it is all.

    Raises:
        UserError: the number is below 1, or phrasings have no weights.
    """
    check_positive("keep", keep, ", or None for all phrasings")
    if question.weights is None:
        raise UserError(f"keep is {keep} without weights: give weights='confidence', 'likelihood', or numbers.")
    weights = question.weights
    return sorted(sorted(range(len(weights)), key=lambda index: -weights[index])[:keep])
