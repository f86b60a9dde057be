"""A canvas that is filled group by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from anyorder.decoding.canvas import BLANK
from anyorder.decoding.loop import Choice, Text


class Content(NamedTuple):
    """A token to read; it sees ranks up to its own."""

    position: int
    token_id: int
    rank: int


class AnyOrderText(Text):
    """One canvas, with the order in which it is filled.

    Args:
        groups: positions to write, group after group.
        given: the given tokens, by rank; their ranks are below 0.
        size: of a group that the network chooses among all positions left; None where the order is fixed.
        sample_id, canvas, rng, end_token_ids: see `Text`.

    Attributes:
        groups: those that are left.
        fresh: tokens that have not been read yet, by rank.
        rank: of the next group; each group that is written has the next one, from 0.
    """

    def __init__(
        self, sample_id: int, canvas: Sequence[int], rng: torch.Generator, end_token_ids: Sequence[int],
        groups: Sequence[Sequence[int]], given: Sequence[Content], size: int | None,
    ) -> None:  # fmt: skip
        super().__init__(sample_id, canvas, rng, end_token_ids)
        self.groups = [list(group) for group in groups]
        self.fresh = list(given)
        self.size = size
        self.rank = 0
        self._stop = len(canvas)  # nothing is written from here on

    def queries(self) -> Sequence[int]:
        """Return the next group, or all positions left where the network chooses among them."""
        groups = self.groups[:1] if self.size is None else self.groups
        return [position for group in groups for position in group]

    def commit(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Write a group; drop the positions behind an end token."""
        if self.size is not None:
            choices = sorted(sorted(choices, key=lambda choice: -choice.confidence)[: self.size])
        self.fresh = [Content(choice.position, choice.token_id, self.rank) for choice in choices]
        self.rank += bool(choices)
        for position, token_id, _ in self.fresh:
            self.tokens[position] = token_id
            if self.continues and token_id in self.end_token_ids:
                self._stop = min(self._stop, position)
        left = [[at for at in group if self.tokens[at] == BLANK and at < self._stop] for group in self.groups]
        self.groups = [group for group in left if group]
        return choices

    @property
    def remaining(self) -> bool:
        """Whether any group is left."""
        return bool(self.groups)
