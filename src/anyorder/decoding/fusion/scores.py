"""Scores of phrasings by the network, to weigh phrasings or to keep the best of them.

Shape suffixes: N phrasings of all questions, R tokens of a phrasing, E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import Fusion
from anyorder.decoding.fusion.reader import Prefiller
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.utils.numbers import check_positive
from anyorder.utils.ragged import log_probs_of


@torch.no_grad()
def confidence(model: Llama, questions: Sequence[Question]) -> list[list[float]]:
    """Return how probable the most probable first token of the answer is, behind the phrasing alone."""
    alone = [member for question in questions for member in question.members()]
    _, logits_NV = Prefiller(model).prefill(alone, Fusion(), 0)
    counts = [len(question.segments) for question in questions]
    return [of_question.tolist() for of_question in logits_NV.softmax(-1).amax(-1).split(counts)]


@torch.no_grad()
def likelihood(model: Llama, questions: Sequence[Question]) -> list[list[float]]:
    """Return how probable the tokens of the phrasing are behind the prefix: their geometric mean.

    Without a prefix the first token is not counted; a phrasing of that token alone is as probable as any token.
    """
    _, rows = Prefiller(model).read_segments([question.layout("shared") for question in questions], 0)
    found = []
    for question, (prefix_RE, *of_segments) in zip(questions, rows, strict=True):
        of_question = []
        for ids, rows_RE in zip(question.segments, of_segments, strict=True):
            logits_RV = model.logits(torch.cat((prefix_RE[-1:], rows_RE[:-1])))
            counted_R = torch.tensor(ids, device=model.device)[len(ids) - len(logits_RV) :]
            log_probs_R = log_probs_of(logits_RV, counted_R)
            mean = float(log_probs_R.mean()) if len(counted_R) else -math.log(model.config.vocab_size)
            of_question.append(math.exp(mean))
        found.append(of_question)
    return found


SCORES: dict[str, Callable[[Llama, Sequence[Question]], list[list[float]]]] = {
    "confidence": confidence,
    "likelihood": likelihood,
}
"""By name."""


def weigh(model: Llama, questions: Sequence[Question], by: str) -> list[Question]:
    """Return the questions with these scores as weights.

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
    """Return the indices of the `keep` phrasings of the highest weights, in their order; of equals the first ones.

    Raises:
        UserError: the number is below 1, or phrasings have no weights.
    """
    check_positive("keep", keep, ", or None for all phrasings")
    if question.weights is None:
        raise UserError(f"keep is {keep} without weights: give weights='confidence', 'likelihood', or numbers.")
    by_weight = sorted(enumerate(question.weights), key=lambda entry: -entry[1])
    return sorted(index for index, _ in by_weight[:keep])
