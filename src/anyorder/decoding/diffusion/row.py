"""One canvas while it is written by diffusion: which positions are masked, and which block is being written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from anyorder.decoding.canvas import BLANK, blanks
from anyorder.decoding.diffusion.commit import Progress
from anyorder.decoding.diffusion.reader import CachePolicy, Span
from anyorder.decoding.diffusion.schedule import Block

if TYPE_CHECKING:
    from anyorder.decoding.diffusion.decoder import DiffusionSampler

EDITING_STEPS = 16
"""Steps of a block that only edit, at most, as two edits could undo each other for ever."""


class Choice(NamedTuple):
    """What would be written at a position."""

    position: int
    token_id: int
    log_prob: float
    confidence: float


@dataclass
class CanvasRow:
    """The state of one row.

    Attributes:
        number: among all prompts.
        tokens: its canvas, `BLANK` at masked positions.
        blocks: those that are still to be written; the first one is being written.
        generator: of its random numbers.
        step: of the block, from 0.
        known: positions from the first whose keys are in an exact cache.
        early: positions where no end token may stand.
    """

    number: int
    tokens: list[int]
    blocks: list[Block]
    generator: torch.Generator
    early: frozenset[int] = frozenset()
    step: int = 0
    known: int = 0
    given: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.given = tuple(token_id != BLANK for token_id in self.tokens)
        self.first = self.tokens.index(BLANK)
        self.continues = not any(self.given[self.first :])
        self._editing = 0
        self._masks = self._masked_in_block()

    @property
    def block(self) -> Block:
        """The one that is being written."""
        return self.blocks[0]

    @property
    def text(self) -> list[int]:
        """What stands from the first position that was to be written up to the first masked one."""
        front = self.tokens.index(BLANK) if BLANK in self.tokens else len(self.tokens)
        return self.tokens[self.first : front]

    def _masked_in_block(self) -> int:
        return self.tokens[self.block.start : self.block.stop].count(BLANK)

    def sight(self, policy: CachePolicy, grow: bool) -> int:
        """Where what can be seen of it ends."""
        return self.block.stop if grow or policy.causal else len(self.tokens)

    def span(self, policy: CachePolicy, grow: bool) -> Span:
        """What the next pass reads of it."""
        span = policy.span(self.block, self.step, self.sight(policy, grow), self.known)
        self.known = self.block.start
        return span

    def wanted(self, span: Span, edit: bool) -> list[int]:
        """Positions that may be written in this step: masked ones, and with `edit` those written in the block.

        A position of an earlier block is masked only where the mask token itself was chosen.
        """
        low = 0 if span.start == 0 else self.block.start
        return [
            position
            for position in range(low, self.block.stop)
            if self.tokens[position] == BLANK or (edit and not self.given[position] and position >= self.block.start)
        ]

    def commit(self, choices: Sequence[Choice], sampler: DiffusionSampler) -> list[Choice]:
        """Which of the choices stand; the surest first, of equals the one at the lowest position."""
        masked = [choice for choice in choices if self.tokens[choice.position] == BLANK]
        ranked = sorted(masked, key=lambda choice: -choice.confidence)
        progress = Progress(masks=self._masks, step=self.step, steps=self.block.steps)
        count = sampler.commit.count([choice.confidence for choice in ranked], progress) if ranked else 0
        edits = [
            choice
            for choice in choices
            if sampler.edit is not None
            and self.tokens[choice.position] not in (BLANK, choice.token_id)
            and math.exp(choice.log_prob) > sampler.edit
        ]
        return sorted(ranked[:count]) + edits

    def write(self, choices: Sequence[Choice], mask_token_id: int, sampler: DiffusionSampler) -> None:
        """Writes the choices that stand, and goes to the next block where this one is complete."""
        for choice in choices:
            if choice.token_id != mask_token_id:
                self.tokens[choice.position] = choice.token_id
        self.step += 1
        if self._masked_in_block() and not (sampler.commit.planned and self.step >= self.block.steps):
            return
        self._editing += 1
        if sampler.edit is not None and choices and self._editing <= EDITING_STEPS:
            return
        self.blocks = self.blocks[1:]
        self.step = self._editing = 0
        if self.blocks:
            self._masks = self._masked_in_block()

    def left_masked(self, mask_token_id: int) -> list[Choice]:
        """The mask tokens of a row that is complete: their steps are over, and nobody chose anything else."""
        if self.blocks:
            return []
        return [Choice(position, mask_token_id, 0.0, 0.0) for position in blanks(self.tokens)]
