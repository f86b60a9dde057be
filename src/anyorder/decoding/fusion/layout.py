"""A question in several phrasings as token ids, and its layout: `prefix | segment 1 .. N | suffix | answer`.

A segment sees the prefix and itself; suffix and answer see everything before them. The layout gives each token its part
and the position at which it is read.

Shape suffixes: B pieces, R rows of the longest, L tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Token ids of one question.

    Attributes:
        segments: its phrasings, each with its separator.
        prefix, suffix: tokens before and behind them.
        weights: how much each phrasing counts, above 0; all the same unless given. Only their ratios matter.
    """

    segments: tuple[tuple[int, ...], ...]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    _layouts: dict[str, FusionLayout] = field(default_factory=dict, init=False, repr=False, compare=False)

    def layout(self, positions: str) -> FusionLayout:
        """Return the layout under these positions, one of `POSITIONS`; it is made once."""
        if positions not in self._layouts:
            parts = self.segments, self.prefix, self.suffix
            self._layouts[positions] = concatenate_paraphrases_with_positions(*parts, positions)
        return self._layouts[positions]

    @property
    def shares(self) -> list[float]:
        """The weights, adding up to 1."""
        weights = (1.0,) * len(self.segments) if self.weights is None else self.weights
        return [weight / sum(weights) for weight in weights]

    def only(self, indices: Sequence[int]) -> Question:
        """Return the question in these phrasings alone."""
        weights = None if self.weights is None else tuple(self.weights[index] for index in indices)
        return replace(self, segments=tuple(self.segments[index] for index in indices), weights=weights)

    def members(self, *, unconditional: bool = False) -> list[Question]:
        """Return each phrasing as a question of its own; at the end, if wanted, the question without any."""
        segments = [(segment,) for segment in self.segments]
        return [replace(self, segments=own, weights=None) for own in (*segments, *[()] * unconditional)]


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

    @property
    def whole(self) -> Piece:
        """All tokens."""
        return Piece(self, 0, self.length)

    @functools.cached_property
    def segment_numbers(self) -> tuple[int, ...]:
        """The label "segment" of each token: 0 in the prefix, 1 to N in the segments, N + 1 behind them."""
        spans = enumerate(self.segment_spans, start=1)
        inside = [number for number, (start, end) in spans for _ in range(start, end)]
        behind = [len(self.segment_spans) + 1] * (self.length - self.suffix_start)
        return (*[0] * self.prefix_length, *inside, *behind)

    def extended(self, token_ids: Sequence[int]) -> FusionLayout:
        """Return the layout with these tokens behind it, such as those of an answer."""
        end = self.next_place + len(token_ids)
        places = (*self.places, *map(float, range(self.next_place, end)))
        return replace(self, token_ids=(*self.token_ids, *token_ids), places=places, next_place=end)

    def labels(self, answer: int = 0, device: torch.device = CPU) -> dict[str, Tensor]:
        """Return the labels of the rows, each `[1, length + answer]`, with those of an answer of so many tokens.

        "order" is the index in the sequence, "part" a constant of this module, "segment" 0 for the prefix, 1 to N for
        the segments and N + 1 behind them, "position" the position of the token, rounded down.
        """
        return lay_out([self.extended([0] * answer).whole], device).ordered

    def rotary_positions(self, answer: int = 0, device: torch.device = CPU) -> Tensor:
        """Return `places` and those of an answer of so many tokens, float64 `[1, length + answer]`."""
        return lay_out([self.extended([0] * answer).whole], device).places


class Piece(NamedTuple):
    """The tokens of a layout from `start` to `end`, exclusive."""

    layout: FusionLayout
    start: int
    end: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.end - self.start

    @property
    def place(self) -> float:
        """Rotary position of the first token."""
        return self.layout.places[self.start]

    @property
    def empty(self) -> Piece:
        """The same place without a token."""
        return self._replace(end=self.start)

    @property
    def columns(self) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
        """The token id, the rotary position and the label "segment" of each token."""
        layout, part = self.layout, slice(self.start, self.end)
        return layout.token_ids[part], layout.places[part], layout.segment_numbers[part]


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
    def fractional_places(self) -> Tensor | None:
        """`places` where some are fractions; None where all equal the label "position"."""
        return self.places if bool((self.places != self.labels["position"]).any()) else None

    @property
    def ordered(self) -> dict[str, Tensor]:
        """The labels of whole layouts, with "order", the index in the sequence."""
        return {"order": torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids), **self.labels}


def lay_out(pieces: Sequence[Piece], device: torch.device) -> Rows:
    """Return tokens, positions and labels of pieces, one row of the batch for each."""
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
    ids, places, spans = list(prefix), [float(place) for place in range(len(prefix))], []
    for segment in whole:
        length = len(segment)
        starts = {"running": len(ids), "right": len(prefix) + longest - length}
        start, step = starts.get(positions, len(prefix)), longest / length if positions == "spread" else 1.0
        spans.append((len(ids), len(ids) + length))
        ids += segment
        places += [start + index * step for index in range(length)]
    before_suffix = FusionLayout(
        token_ids=tuple(ids),
        segment_spans=tuple(spans),
        suffix_start=len(ids),
        places=tuple(places),
        next_place=len(ids) if positions == "running" else len(prefix) + longest,
    )
    return before_suffix.extended(suffix)


def create_segment_isolation_mask(layout: FusionLayout) -> Tensor:
    """Return which token of a layout sees which, boolean `[length, length]`: `visibility.segments()` on its labels."""
    labels = layout.labels()
    return isolated_segments().mask(labels, labels)[0]
