"""A text that grows from left to right, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anyorder.decoding.loop import Choice, Text


class CausalText(Text):
    """A prompt and what continues it.

    Args:
        limit: length of prompt and text at which the text is complete, in tokens.
        sample_id, prompt, rng, end_token_ids: see `Text`.
    """

    def __init__(
        self, sample_id: int, prompt: Sequence[int], rng: torch.Generator, end_token_ids: Sequence[int], limit: int
    ) -> None:
        super().__init__(sample_id, prompt, rng, end_token_ids)
        self.limit = limit

    def queries(self) -> Sequence[int]:
        """Return the position behind the last token."""
        return (len(self.tokens),)

    def commit(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Append the token."""
        self.tokens.append(choices[0].token_id)
        return choices

    @property
    def remaining(self) -> bool:
        """Whether the limit is not reached."""
        return len(self.tokens) < self.limit

    @property
    def history(self) -> list[int]:
        """All tokens; none of them is a blank."""
        return self.tokens
