"""How several phrasings become one answer, and the check of questions before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anyorder.decoding.checks import check_max_new_tokens, check_sample_ids, check_token_ids
from anyorder.decoding.fusion.ensembles import POOLS, WEIGHED
from anyorder.decoding.fusion.layout import POSITIONS, Question
from anyorder.decoding.fusion.weighting import Correction, read_correction
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.utils.annotations import check_fields

UNWEIGHED = tuple(method for method in POOLS if method not in WEIGHED)
"""Methods in which no phrasing can count more than another."""

HYBRID = "attention+logit-mean"
"""The mean of the log-probabilities of these two methods."""

METHODS = ("attention", *POOLS, HYBRID, "vote")
"""Ways to make one answer of several phrasings."""

SAME_METHODS = {"log-probability-mean": "logit-mean"}
"""Other names, for what comes to the same."""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """How several phrasings become one answer.

    Attributes:
        method: one of `METHODS`.
        positions: one of `POSITIONS`; read by "attention", alone or in `HYBRID`, as is the correction.
        correction: one of `CORRECTIONS`, or an `APE`.

    Raises:
        UserError: one of them is unknown.
    """

    method: str = "attention"
    positions: str = "shared"
    correction: Correction = "1/N"

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "method", SAME_METHODS.get(self.method, self.method))
        for name, known in (("method", METHODS), ("positions", POSITIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(known)}.")
        object.__setattr__(self, "correction", read_correction(self.correction))


def check_questions(
    config: ModelConfig, questions: Sequence[Question], fusion: Fusion, max_new_tokens: int, sample_ids: Sequence[int]
) -> list[int]:
    """Return how many tokens each answer may have; refuse questions that the network cannot read.

    Raises:
        UserError: see `fusion_steps`.
    """
    check_sample_ids(sample_ids, len(questions), "question")
    check_max_new_tokens(max_new_tokens)
    limits = []
    for question, sample_id in zip(questions, sample_ids, strict=True):
        name = f"question {sample_id}" if len(questions) > 1 else "the question"
        _check_parts(config, question, fusion, name)
        limits.append(min(max_new_tokens, _room(config, question, fusion, name)))
    return limits


def _check_parts(config: ModelConfig, question: Question, fusion: Fusion, name: str) -> None:
    """Refuse phrasings, weights and tokens that cannot be."""
    count, weights = len(question.segments), question.weights
    if not count:
        raise UserError(f"{name} has 0 phrasings: give at least one.")
    if weights is not None:
        if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
            raise UserError(
                f"weights of {name} are {list(weights)}: give a number above 0 for each of its {count} phrasings."
            )
        if fusion.method in UNWEIGHED and len(set(weights)) > 1:
            raise UserError(
                f"weights are given with the method {fusion.method!r}, which asks who is surest: leave them out, or "
                f"choose one of attention, {', '.join(WEIGHED)}, {HYBRID}, vote."
            )
    if fusion.method == "contrast" and not (question.prefix or question.suffix):
        raise UserError(
            f"method 'contrast' also asks without any phrasing, and {name} has nothing else: give a prefix or a suffix."
        )
    check_token_ids(config, question.layout(fusion.positions).token_ids, name)


def _room(config: ModelConfig, question: Question, fusion: Fusion, name: str) -> int:
    """Return how many tokens can be written behind a question, at least one."""
    positions = fusion.positions if fusion.method in ("attention", HYBRID) else "shared"
    taken = question.layout(positions).next_place
    longest = min(config.context_length, config.cacheable or config.context_length)
    if taken < longest:
        return longest - taken
    lengths = [len(segment) for segment in question.segments]
    segments = ("all phrasings", sum(lengths)) if positions == "running" else ("the longest phrasing", max(lengths))
    parts = [("the prefix", len(question.prefix)), segments, ("the suffix", len(question.suffix))]
    remedy = f"shorten {max(parts, key=lambda part: part[1])[0]} by {taken - longest + 1}"
    if positions == "running" and question.layout("shared").next_place < longest:
        remedy += ", or take the positions 'shared'"
    described = ", ".join(f"{part} {length}" for part, length in parts)
    raise UserError(
        f"{name} reaches over {taken} positions ({described}) and the network over {longest}, one of which is for the "
        f"answer: {remedy}."
    )
