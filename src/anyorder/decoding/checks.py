"""What decoders refuse, in the same words whatever the mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from anyorder.errors import UserError
from anyorder.utils.numbers import check_positive

if TYPE_CHECKING:
    from anyorder.model.config import ModelConfig


def check_sample_ids(sample_ids: Sequence[int], prompts: int, kind: str = "prompt") -> None:
    """Refuse an empty list of prompts, and numbers that are not one for each; messages call a prompt `kind`.

    Raises:
        UserError: see above.
    """
    if not prompts:
        raise UserError(f"there are 0 {kind}s: give at least one.")
    if len(sample_ids) != prompts or len(set(sample_ids)) != len(sample_ids):
        raise UserError(
            f"sample_ids is {list(sample_ids)} for {prompts} {kind}s: give each {kind} a number of its own."
        )


def check_token_ids(config: ModelConfig, token_ids: Iterable[int], name: str) -> None:
    """Refuse tokens outside the vocabulary; `name` is that of the text, as in "prompt 3".

    Raises:
        UserError: see above.
    """
    for token_id in token_ids:
        if token_id not in config.row_ids:
            remedy = f"give ids from 0 to {config.vocab_size - 1}, from the tokenizer of this network"
            raise UserError(f"{name} has the token id {token_id}: {remedy}.")


def check_room(config: ModelConfig, sample_id: int, tokens: int) -> None:
    """Refuse a prompt of so many tokens that none can be written behind them.

    Raises:
        UserError: see above.
    """
    trained_length = config.context_length
    if tokens >= trained_length:
        remedy = f"shorten it to at most {trained_length - 1}, which leaves room to write"
        raise UserError(
            f"prompt {sample_id} has {tokens} tokens, and the network was trained on {trained_length}: {remedy}."
        )


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]) -> None:
    """Refuse prompts that the network cannot continue.

    Raises:
        UserError: see `left_to_right_steps`.
    """
    check_sample_ids(sample_ids, len(prompts))
    for sample_id, prompt in zip(sample_ids, prompts, strict=True):
        if not prompt:
            raise UserError(
                f"prompt {sample_id} has 0 tokens: give at least one, such as the token that begins a text."
            )
        check_token_ids(config, prompt, f"prompt {sample_id}")
        check_room(config, sample_id, len(prompt))


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Refuse what is no number of tokens to write.

    Raises:
        UserError: see above.
    """
    check_positive("max_new_tokens", max_new_tokens)


def not_numbers(of: str = "") -> UserError:
    """Return the error for scores that are NaN; `of` names the sample, as in " for row 3"."""
    return UserError(f"the network's scores{of} are NaN: check its weights, or load it in float32.")
