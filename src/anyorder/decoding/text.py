"""A text while it is written: what to predict next, what to do with the choices, and when it is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch

from anyorder.decoding.canvas import BLANK
from anyorder.decoding.trace import Stop, StopReason, Written


class Choice(NamedTuple):
    """A token chosen for a position.

    Attributes:
        position: index in the text.
        token_id: the token.
        log_prob: natural logarithm of the probability that the token was chosen by.
        confidence: ranks the choices of a text, where it does not commit all of them; the highest first.
    """

    position: int
    token_id: int
    log_prob: float
    confidence: float

    def written(self, step: int, sample_id: int) -> Written:
        """Return the event that a trace keeps of it."""
        return Written(step, sample_id, self.position, self.token_id, self.log_prob)


class Text(ABC):
    """One sample of a batch, from prompt or canvas to the complete text.

    Subclasses say which positions to predict next (`queries`), which choices to write (`commit`) and whether anything
    remains (`remaining`). When a text is complete is decided here, for every mode.

    Args:
        sample_id: number of the prompt in the whole list of prompts; names the text in traces and messages.
        tokens: the prompt, or a canvas with `BLANK` where a token is to be written.
        rng: source of the random draws of this text alone.
        end_token_ids: tokens that end a text.

    Attributes:
        tokens: `BLANK` where nothing is written yet.
        first: the first position to be written.
        continues: whether nothing given follows `first`. Only such a text ends at an end token or a stop condition;
            one with a gap is written to its last blank.
    """

    def __init__(
        self, sample_id: int, tokens: Sequence[int], rng: torch.Generator, end_token_ids: Sequence[int] = ()
    ) -> None:
        self.sample_id = sample_id
        self.tokens = list(tokens)
        self.rng = rng
        self.end_token_ids = end_token_ids
        self.first = self.tokens.index(BLANK) if BLANK in self.tokens else len(self.tokens)
        self.continues = all(token_id == BLANK for token_id in self.tokens[self.first :])
        self._front = self.first
        self._judged: list[int] = []

    # ---- what a mode defines ----

    @abstractmethod
    def queries(self) -> Sequence[int]:
        """Return the positions to predict in the next pass; the same until the next `commit`."""

    @abstractmethod
    def commit(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Write some of the choices into `tokens`, and return those.

        Args:
            choices: one for each position of `queries`, in the same order.
        """

    @property
    @abstractmethod
    def remaining(self) -> bool:
        """Whether anything is still to be written."""

    @property
    def settled(self) -> bool:
        """Whether the text up to its first blank is final at this moment, so that it may be judged."""
        return True

    @property
    def ends_early(self) -> bool:
        """Whether an end token completes the text at this moment, although blanks remain behind it."""
        return True

    @property
    def history(self) -> list[int]:
        """The tokens so far, in the order of positions, without blanks."""
        return [token_id for token_id in self.tokens if token_id != BLANK]

    # ---- the one stop rule ----

    def why_complete(self, stop: Stop | None) -> StopReason | None:
        """Return why nothing more is to be written, or None while something is.

        Args:
            stop: called with `sample_id` and what is written up to the first blank or end token, whenever that has
                changed.
        """
        end = self._end()
        if self.continues and self.settled:
            if stop is not None:
                written = self.tokens[self.first : self._front]
                if written != self._judged:
                    self._judged = written
                    if stop(self.sample_id, written):
                        return "stop"
            if end and self.ends_early:
                return "end"
        if self.remaining:
            return None
        return "end" if self.continues and end else "length"

    def reread(self) -> None:
        """Look for the end token from the first position again: for texts whose written tokens change."""
        self._front = self.first

    def _end(self) -> bool:
        """Advance to the first blank or end token; return whether it is an end token."""
        while self._front < len(self.tokens) and self.tokens[self._front] != BLANK:
            if self.tokens[self._front] in self.end_token_ids:
                return True
            self._front += 1
        return False
