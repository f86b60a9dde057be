"""The weight of each phrasing in the attention of suffix and answer.

N copies of the same text take N times the attention of one. So -log N is added to the scores of the answer's rows
towards all segments, and log(N w) towards a segment of weight w; weights add up to 1.

Shape suffixes: B questions, N segments of a question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from anyorder.attention import BiasTerm, Corrections, Tempered
from anyorder.decoding.fusion.layout import SEGMENT, Question
from anyorder.errors import UserError
from anyorder.utils.annotations import check_fields
from anyorder.visibility import key_is, query_is

CORRECTIONS = ("1/N", "none", "length")
"""Corrections by name; "ape:T,S" is another one, see `APE`."""


TOWARDS_SEGMENTS = ~query_is("part", SEGMENT) & key_is("part", SEGMENT)
"""Pairs that are corrected: query rows outside of segments, of which those of a causal prefix see no segment."""


@dataclass(frozen=True)
class APE:
    """Adaptive parallel encoding (Yang et al. 2025, arXiv 2502.05431): 1 and 1 are no correction.

    Attributes:
        temperature: the scores towards segments are divided by it.
        scale: factor of the logarithm of the weight that all segments together have.
    """

    temperature: float
    scale: float

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in (("temperature", self.temperature), ("scale", self.scale)):
            if not (0 < value < math.inf):
                raise UserError(f"the {name} of the correction 'ape' is {value}: give a number above 0.")


Correction = str | APE


def read_correction(correction: Correction) -> Correction:
    """Check a correction, and return it; "ape:0.9,0.8" becomes `APE(0.9, 0.8)`.

    Raises:
        UserError: it is unknown.
    """
    if isinstance(correction, APE) or correction in CORRECTIONS:
        return correction
    name, _, numbers = str(correction).partition(":")
    try:
        temperature, scale = map(float, numbers.split(","))
    except ValueError:
        name = ""
    if name != "ape":
        known = ", ".join(CORRECTIONS)
        raise UserError(f"correction is {correction!r}: choose one of {known}, or ape:TEMPERATURE,SCALE.")
    return APE(temperature, scale)


def corrected(questions: Sequence[Question], correction: Correction, device: torch.device) -> Corrections:
    """Return the corrections of the scores of `TOWARDS_SEGMENTS`, one value per question.

    Args:
        questions: one per sample of the batch.
        correction: "1/N", "none", "length" (as 1/N, and each segment counts as if it had the mean length), or `APE`.
        device: of the values.
    """
    added = [torch.tensor(_log_weights(question, correction), dtype=torch.float64) for question in questions]
    added_BN = pad_sequence(added, batch_first=True).to(device)
    if all(len(values_N.unique()) <= 1 for values_N in added):  # one number for all segments of a question
        columns = {TOWARDS_SEGMENTS: added_BN[:, 0]}
    else:
        columns = {TOWARDS_SEGMENTS & key_is("segment", n + 1): added_B for n, added_B in enumerate(added_BN.T)}
    bias = [BiasTerm(relation, added_B) for relation, added_B in columns.items() if added_B.any()]
    if isinstance(correction, APE):
        return Corrections(bias, Tempered(TOWARDS_SEGMENTS, correction.temperature, correction.scale))
    return Corrections(bias)


def _log_weights(question: Question, correction: Correction) -> list[float]:
    """Return the value added to the scores towards each segment of a question."""
    count, lengths = len(question.segments), [len(segment) for segment in question.segments]
    # Exactly 0 where the weights are equal, so that no bias is left of them.
    equal = len(set(question.shares)) == 1
    weighed = [0.0 if equal else math.log(count * share) for share in question.shares]
    if correction == "1/N":
        return [log - math.log(count) for log in weighed]
    if correction == "length":
        mean = sum(lengths) / count if count else 0.0
        return [log + math.log(mean / length / count) for log, length in zip(weighed, lengths, strict=True)]
    return weighed
