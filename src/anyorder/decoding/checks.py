"""What decoders refuse, in the same words whatever the mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.model.config import ModelConfig


def check_rows(rows: Sequence[int], prompts: int, kind: str = "prompt") -> None:
    """Refuses no prompts at all, and numbers that are not one for each; `kind` is what messages call a prompt.

    Raises:
        UserError: see above.
    """
    if not prompts:
        raise UserError(f"there are 0 {kind}s: give at least one.")
    if len(rows) != prompts or len(set(rows)) != len(rows):
        raise UserError(f"rows is {list(rows)} for {prompts} {kind}s: give each {kind} a number of its own.")


def check_token_ids(config: ModelConfig, token_ids: Iterable[int], name: str) -> None:
    """Refuses tokens outside the vocabulary; `name` is that of the text, as in "prompt 3".

    Raises:
        UserError: see above.
    """
    for token_id in token_ids:
        if token_id not in config.row_ids:
            remedy = f"give ids from 0 to {config.vocab_size - 1}, from the tokenizer of this network"
            raise UserError(f"{name} has the token id {token_id}: {remedy}.")


def check_room(config: ModelConfig, row: int, tokens: int) -> None:
    """Refuses a prompt of so many tokens that none can be written behind them.

    Raises:
        UserError: see above.
    """
    trained_length = config.context_length
    if tokens >= trained_length:
        remedy = f"shorten it to at most {trained_length - 1}, which leaves room to write"
        raise UserError(f"prompt {row} has {tokens} tokens, and the network was trained on {trained_length}: {remedy}.")


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
    """Refuses prompts that the network cannot continue.

    Raises:
        UserError: see `write_left_to_right`.
    """
    check_rows(rows, len(prompts))
    for row, prompt in zip(rows, prompts, strict=True):
        if not prompt:
            raise UserError(f"prompt {row} has 0 tokens: give at least one, such as the token that begins a text.")
        check_token_ids(config, prompt, f"prompt {row}")
        check_room(config, row, len(prompt))


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Refuses what is no number of tokens to write.

    Raises:
        UserError: see above.
    """
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens!r}: give a whole number above 0.")


def not_numbers(of: str = "") -> UserError:
    """What to raise where the network's scores are NaN; `of` says whose they are, as in " for row 3"."""
    return UserError(f"the network's scores{of} are NaN: check its weights, or load it in float32.")


def checked_log_prob(log_prob: float, row: int) -> float:
    """The same number.

    Raises:
        UserError: it is none.
    """
    if math.isnan(log_prob):
        raise not_numbers(f" for row {row}")
    return log_prob
