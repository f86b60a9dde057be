"""The layout of one question in several phrasings: `prefix | segment 1 .. N | suffix | answer`, in token ids.

A segment sees the prefix and itself; suffix and answer see everything before them. The layout gives each token its part
and the position at which it is read.

Shape suffixes: B pieces, R rows of the longest, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyorder.errors import UserError
from anyorder.utils.ragged import pad
from anyorder.visibility import segments as isolated_segments

POSITIONS = ("shared", "running", "right", "spread")
"""Positions of segments: all right behind the prefix, one after the other, ending together, or spread evenly over the
length of the longest."""

PREFIX, SEGMENT, ANSWER = 0, 1, 2
"""The label "part"; the suffix is part of the answer."""


@dataclass(frozen=True, kw_only=True)
class FusionLayout:
    """One question: prefix, segments and suffix in one sequence.

    Attributes:
        token_ids: of the whole sequence.
        segment_spans: start and exclusive end of each segment in it.
        suffix_start: index of the first token behind the segments.
        places: rotary position of each token; fractions where segments are spread.
        next_place: position of the first token of the answer.
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
        """Labels of the rows, each `[1, length + answer]`, followed by those of an answer of so many tokens.

        "order" is the index in the sequence, "part" a constant of this module, "segment" 0 for the prefix, 1 to N for
        the segments and N + 1 behind them, "position" the position of the token, rounded down.
        """
        labels = self._rows(answer, device).labels
        return {"order": torch.arange(self.length + answer, device=device).unsqueeze(0), **labels}

    def rotary_positions(self, answer: int = 0, device: torch.device | None = None) -> Tensor:
        """`places` and those of the answer, float64 `[1, length + answer]`."""
        return self._rows(answer, device).places

    def _rows(self, answer: int, device: torch.device | None) -> Rows:
        return lay_out([Piece.whole(self, (0,) * answer)], torch.device("cpu") if device is None else device)


class Piece(NamedTuple):
    """The tokens from `start` to `end`, exclusive, of a layout with an answer behind it."""

    layout: FusionLayout
    start: int
    end: int
    answer: Sequence[int] = ()

    @classmethod
    def whole(cls, layout: FusionLayout, answer: Sequence[int] = ()) -> Piece:
        """All of the layout and the answer."""
        return cls(layout, 0, layout.length + len(answer), answer)

    @property
    def empty(self) -> Piece:
        """The same place without a token."""
        return self._replace(end=self.start)

    @property
    def columns(self) -> tuple[Sequence[int], Sequence[float], Sequence[int]]:
        """The token id, the place and the label "segment" of each token."""
        layout, part = self.layout, slice(self.start, self.end)
        spans, last = layout.segment_spans, layout.next_place + len(self.answer)
        numbers = [number for number, (start, end) in enumerate(spans, start=1) for _ in range(start, end)]
        behind = [len(spans) + 1] * (layout.length + len(self.answer) - layout.suffix_start)
        return (
            (*layout.token_ids, *self.answer)[part],
            (*layout.places, *range(layout.next_place, last))[part],
            [*[0] * layout.prefix_length, *numbers, *behind][part],
        )


class Rows(NamedTuple):
    """A batch of pieces, padded on the right with zeros.

    Attributes:
        ids: token ids `[batch, rows]`.
        valid: rows that are not padding, boolean `[batch, rows]`.
        places: rotary positions, float64 `[batch, rows]`.
        labels: "position", "part" and "segment", each `[batch, rows]`.
    """

    ids: Tensor
    valid: Tensor
    places: Tensor
    labels: dict[str, Tensor]

    @property
    def rotary_positions(self) -> Tensor | None:
        """`places` where some are fractions; None where all equal the label "position"."""
        return self.places if bool((self.places != self.labels["position"]).any()) else None


def lay_out(pieces: Sequence[Piece], device: torch.device) -> Rows:
    """The tokens, positions and labels of pieces, one row of the batch for each."""
    ids, places, segments = zip(*(piece.columns for piece in pieces), strict=True)
    id_BR, valid_BR = pad(ids, device)
    segment_BR, _ = pad(segments, device)
    place_BR = pad_sequence([torch.tensor(row, dtype=torch.float64) for row in places], batch_first=True).to(device)
    count_B1 = torch.tensor([[len(piece.layout.segment_spans)] for piece in pieces], device=device)
    part_BR = (segment_BR > 0) * SEGMENT + (segment_BR > count_B1) * (ANSWER - SEGMENT)
    labels = {"position": place_BR.floor().long(), "part": part_BR, "segment": segment_BR}
    return Rows(id_BR, valid_BR, place_BR, labels)


def concatenate_paraphrases_with_positions(
    segments: Sequence[Sequence[int]],
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    positions: str = "shared",
    separator: Sequence[int] = (),
) -> FusionLayout:
    """Lay out prefix, segments and suffix, all of them token ids.

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
