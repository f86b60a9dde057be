"""Where everything stands when several phrasings of one question are read apart and answered together.

`prefix | segment 1 .. N | suffix | answer`: a segment sees the prefix and itself, suffix and answer see everything
before them. A layout is built from token ids, and says of each token which part it belongs to and at which position
it is read.

Shape suffixes: L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.visibility import segments as isolated_segments

POSITIONS = ("shared", "running", "right", "spread")
"""Where segments are read: all right behind the prefix, one after the other as they stand, ending together, or spread
evenly over the length of the longest."""

PREFIX, SEGMENT, ANSWER = 0, 1, 2
"""The label "part"; the suffix is part of the answer."""


@dataclass(frozen=True, kw_only=True)
class FusionLayout:
    """One question: prefix, segments and suffix in one sequence.

    Attributes:
        token_ids: of all of it, as it is laid out.
        segment_spans: start and end of each segment in it, the end not included.
        suffix_start: index of the first token behind the segments.
        places: the position at which each token is read; fractions where segments are spread.
        next_place: the position of the first token of the answer.
    """

    token_ids: tuple[int, ...]
    segment_spans: tuple[tuple[int, int], ...]
    suffix_start: int
    places: tuple[float, ...]
    next_place: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the segments."""
        return self.segment_spans[0][0] if self.segment_spans else self.suffix_start

    @property
    def prefix(self) -> tuple[int, ...]:
        """The tokens before the segments."""
        return self.token_ids[: self.prefix_length]

    def labels(self, answer: int = 0, device: torch.device | None = None) -> dict[str, Tensor]:
        """What the rows carry, each `[1, length + answer]`, also for so many tokens of an answer.

        "order" is the place in the sequence, "part" a number of this module, "segment" 0 for the prefix, 1 to N for the
        segments and N + 1 behind them, "position" where a token is read, rounded down.
        """
        total = self.length + answer
        segment_L = torch.full((total,), len(self.segment_spans) + 1)
        segment_L[: self.prefix_length] = 0
        for number, (start, end) in enumerate(self.segment_spans, start=1):
            segment_L[start:end] = number
        order_L = torch.arange(total)
        inside_L = (order_L >= self.prefix_length) & (order_L < self.suffix_start)
        part_L = torch.where(inside_L, SEGMENT, torch.where(order_L < self.suffix_start, PREFIX, ANSWER))
        labels = {"order": order_L, "part": part_L, "segment": segment_L, "position": self.rotary_positions(answer)[0]}
        return {name: label.long().view(1, -1).to(device) for name, label in labels.items()}

    def rotary_positions(self, answer: int = 0, device: torch.device | None = None) -> Tensor:
        """`places` and those of the answer, float64 `[1, length + answer]`."""
        behind = range(self.next_place, self.next_place + answer)
        return torch.tensor([[*self.places, *behind]], dtype=torch.float64, device=device)


def concatenate_paraphrases_with_positions(
    segments: Sequence[Sequence[int]],
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    positions: str = "shared",
    separator: Sequence[int] = (),
) -> FusionLayout:
    """Lays out prefix, segments and suffix, all of them token ids.

    Args:
        segments: one for each phrasing.
        prefix, suffix: tokens before and behind them.
        positions: one of `POSITIONS`.
        separator: tokens that every segment ends with; they belong to it.

    Raises:
        UserError: the positions are unknown, or a segment has no token.
    """
    if positions not in POSITIONS:
        raise UserError(f"positions is {positions!r}: choose one of {', '.join(POSITIONS)}.")
    whole = [[*segment, *separator] for segment in segments]
    for number, segment in enumerate(segments):
        if not len(segment):
            raise UserError(f"phrasing {number} has no token: give at least one word, or leave the phrasing out.")
    longest = max(map(len, whole), default=0)
    ids, places = list(prefix), [float(place) for place in range(len(prefix))]
    spans = []
    for segment in whole:
        start, length = len(prefix), len(segment)
        if positions == "running":
            start = len(ids)
        elif positions == "right":
            start += longest - length
        step = longest / length if positions == "spread" else 1.0
        spans.append((len(ids), len(ids) + length))
        ids += segment
        places += [start + index * step for index in range(length)]
    behind = len(ids) if positions == "running" else len(prefix) + longest
    return FusionLayout(
        token_ids=(*ids, *suffix),
        segment_spans=tuple(spans),
        suffix_start=len(ids),
        places=(*places, *(float(behind + index) for index in range(len(suffix)))),
        next_place=behind + len(suffix),
    )


def create_segment_isolation_mask(layout: FusionLayout) -> Tensor:
    """Which token of a layout sees which, boolean `[length, length]`: `visibility.segments()` on its labels."""
    labels = layout.labels()
    return isolated_segments().mask(labels, labels)[0]
