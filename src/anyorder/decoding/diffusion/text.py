"""One canvas while it is written by diffusion: which positions are masked, and which block is being written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from anyorder.decoding.canvas import BLANK, blanks
from anyorder.decoding.diffusion.cache import CachePolicy
from anyorder.decoding.diffusion.commit import BlockProgress, Commit
from anyorder.decoding.diffusion.schedule import Block
from anyorder.decoding.loop import Choice, Text
from anyorder.errors import UserError
from anyorder.model.modes import Mode

EDITING_STEPS = 16
"""Steps of a block that only edit, at most, as two edits could undo each other for ever."""


class CanvasText(Text):
    """The state of one canvas.

    Args:
        mode: the mode that writes, with the mask token.
        blocks: to write, from left to right, at least one.
        commit, edit, grow, stop_at_end: see `DiffusionSampler`.
        policy: which positions a pass reads.
        sample_id, canvas, rng, end_token_ids: see `Text`.

    Attributes:
        blocks: those still to be written; the first one is being written.
        step: of the block, from 0.
        given: which positions held a token from the beginning.
        just_written: positions written since they were last read; in the beginning, all that are given.
        frozen_end: start of the block that was read last, before which nothing changes any more.
    """

    def __init__(
        self,
        sample_id: int,
        canvas: Sequence[int],
        rng: torch.Generator,
        end_token_ids: Sequence[int],
        *,
        mode: Mode,
        blocks: Sequence[Block],
        commit: Commit,
        policy: CachePolicy,
        edit: float | None = None,
        grow: bool = False,
        stop_at_end: bool = False,
    ) -> None:
        super().__init__(sample_id, canvas, rng, end_token_ids)
        self.mode = mode
        self.blocks = list(blocks)
        self.rule = commit
        self.policy = policy
        self.edit = edit
        self.grow = grow
        self.stop_at_end = stop_at_end
        self.step = self.frozen_end = self._edited = 0
        self.given = [token_id != BLANK for token_id in canvas]
        self.just_written = [position for position, is_given in enumerate(self.given) if is_given]

    @property
    def block(self) -> Block:
        """The one that is being written."""
        return self.blocks[0]

    @property
    def begins(self) -> bool:
        """Whether the next pass reads what is before the block, for its first token, as a causal context is read."""
        return self.mode.causal_context and self.tokens[self.block.start] == BLANK

    @property
    def open_from(self) -> int:
        """First position whose row sees all of its block, where the context is causal."""
        return self.block.start if self.blocks and not self.begins else len(self.tokens)

    @property
    def visible_end(self) -> int:
        """Exclusive end of the positions that may be attended to at present."""
        if self.begins:
            return self.block.start
        return self.block.stop if self.grow or self.mode.block_length is not None else len(self.tokens)

    def logits_at(self, position: int) -> int:
        """Return the position whose logits predict this one."""
        return position - 1 if self.begins else self.mode.row(position)

    def queries(self) -> Sequence[int]:
        """Return the masked positions that the next pass reads; where tokens are edited, also those just written.

        A position of an earlier block is masked only where the mask token itself was chosen. It is predicted again
        when the canvas is read from its beginning.
        """
        if self.begins:
            return [self.block.start]
        reads = self.policy.reads(self)
        readable = reads if isinstance(reads, range) else frozenset(reads)
        edits, start, shifted = self.edit is not None, self.block.start, self.mode.shifted
        queries = [
            at
            for at in range(0 if 0 in readable else start, self.block.stop)
            if (self.tokens[at] == BLANK or (edits and at >= start and not self.given[at]))
            and (self.logits_at(at) if shifted else at) in readable
        ]
        if not queries:
            raise UserError(f"{type(self.policy).__name__} reads none of the masked positions: let reads return them.")
        return queries

    def commit(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Write the choices that the rule selects, and the edits; go to the next block where this one is complete."""
        if self.begins:
            return self._begin(choices[0])
        masked = [choice for choice in choices if self.tokens[choice.position] == BLANK]
        committed = self._selected(masked) if masked else []
        if self.edit is not None:
            committed += [choice for choice in choices if self._edits(choice, self.edit)]
            self.reread()
        written = [choice for choice in committed if choice.token_id != self.mode.mask_token_id]
        for choice in written:
            self.tokens[choice.position] = choice.token_id
        self.just_written = [choice.position for choice in written]
        self.frozen_end = self.block.start
        self._advance(bool(committed))
        if not self.blocks and self.mode.mask_token_id is not None:
            # The steps are over: what is left masked is in the trace as mask tokens.
            committed += [Choice(position, self.mode.mask_token_id, 0.0, 0.0) for position in blanks(self.tokens)]
        return committed

    def _begin(self, choice: Choice) -> list[Choice]:
        """Write the first token of a block, which no step counts."""
        self.tokens[choice.position] = choice.token_id
        self.just_written, self.frozen_end = [choice.position], self.block.start
        if BLANK not in self.tokens[self.block.start : self.block.stop]:
            self.blocks = self.blocks[1:]
        return [choice]

    def _selected(self, masked: Sequence[Choice]) -> list[Choice]:
        positions = [choice.position for choice in masked]
        progress = BlockProgress(masks=self.block.masks, step=self.step, steps=self.block.steps)
        selected = set(self.rule.select([choice.confidence for choice in masked], positions, progress))
        if not selected <= set(positions) or not (selected or self.rule.planned):
            raise UserError(
                f"{type(self.rule).__name__} selects {sorted(selected)} of the positions {positions}: select at least "
                "one of them, or set planned = True for a rule that keeps to the planned steps."
            )
        return [choice for choice in masked if choice.position in selected]

    def _edits(self, choice: Choice, above: float) -> bool:
        """Whether a choice replaces a token that was written before."""
        return self.tokens[choice.position] not in (BLANK, choice.token_id) and math.exp(choice.log_prob) > above

    def _advance(self, committed: bool) -> None:
        """Count the step, and begin the next block where this one is complete."""
        self.step += 1
        masked = BLANK in self.tokens[self.block.start : self.block.stop]
        if masked and not (self.rule.planned and self.step >= self.block.steps):
            return
        self._edited += 1
        if self.edit is not None and committed and self._edited <= EDITING_STEPS:
            return
        self.blocks = self.blocks[1:]
        self.step = self._edited = 0

    @property
    def remaining(self) -> bool:
        """Whether a block is left."""
        return bool(self.blocks)

    @property
    def settled(self) -> bool:
        """Whether no token of an incomplete block may still be edited."""
        return self.edit is None or self.step == 0

    @property
    def ends_early(self) -> bool:
        """Whether an end token completes the text: at once, or where the canvas grows, with its block."""
        return self.stop_at_end or (self.grow and self.step == 0)
