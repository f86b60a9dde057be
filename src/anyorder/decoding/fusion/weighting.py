"""How much each phrasing counts where the answer looks at all of them.

N copies of the same text take N times the attention of one. So -log N is added to the scores of the answer's rows
towards all segments, and log(N w) towards a segment of weight w; weights add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from anyorder.attention import BiasTerm, Tempered
from anyorder.decoding.fusion.layout import SEGMENT, FusionLayout
from anyorder.errors import UserError
from anyorder.utils.annotations import check_fields
from anyorder.visibility import key_is, query_is

CORRECTIONS = ("1/N", "none", "length")
"""Corrections by name; "ape:T,S" is another one, see `APE`."""


TOWARDS_SEGMENTS = ~query_is("part", SEGMENT) & key_is("part", SEGMENT)
"""Pairs that are corrected: rows outside of segments, of which those of a causal prefix see none."""


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
    """A correction, checked; "ape:0.9,0.8" becomes `APE(0.9, 0.8)`.

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


def corrected(
    layouts: Sequence[FusionLayout], weights: Sequence[Sequence[float]], correction: Correction
) -> tuple[list[BiasTerm], Tempered | None]:
    """What is added to scores and how they are tempered, where rows of the answer look at segments.

    Args:
        layouts: one per question.
        weights: of each segment of each question, above 0, adding up to 1 in a question.
        correction: "1/N", "none", "length" (as 1/N, and each segment counts as if it had the mean length), or `APE`.
    """
    most = max(len(layout.segment_spans) for layout in layouts)
    added = [_added(layout, shares, correction) for layout, shares in zip(layouts, weights, strict=True)]
    tempered = None
    if isinstance(correction, APE):
        tempered = Tempered(TOWARDS_SEGMENTS, correction.temperature, correction.scale)
    if all(len(set(of_question)) <= 1 for of_question in added):  # one number for all segments of a question
        values = [of_question[0] if of_question else 0.0 for of_question in added]
        relations = {TOWARDS_SEGMENTS: values}
    else:
        padded = [[*of_question, *[0.0] * (most - len(of_question))] for of_question in added]
        relations = {
            TOWARDS_SEGMENTS & key_is("segment", number + 1): [of_question[number] for of_question in padded]
            for number in range(most)
        }
    terms = [
        BiasTerm(relation, torch.tensor(values, dtype=torch.float64))
        for relation, values in relations.items()
        if any(values)
    ]
    return terms, tempered


def _added(layout: FusionLayout, weights: Sequence[float], correction: Correction) -> list[float]:
    """What is added to the scores towards each segment of a question."""
    lengths = [end - start for start, end in layout.segment_spans]
    count = len(lengths)
    if count == 0:
        return []
    # Where weights are equal this is exactly 0, so that they leave no trace.
    weighed = [0.0 if len(set(weights)) == 1 else math.log(count * weight) for weight in weights]
    if correction == "1/N":
        return [log - math.log(count) for log in weighed]
    if correction == "length":
        mean = sum(lengths) / count
        return [log + math.log(mean / length / count) for log, length in zip(weighed, lengths, strict=True)]
    return weighed
