"""The forms in which people have prompts, as text or token ids: messages, and what transformers' tokenizers return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from reprlib import repr as _short
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.chat_template.dialogue import dialogue_tokens
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def plain_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """Return a prompt as text or token ids, or a list of such; what is of another kind as it is.

    Tensors and arrays become lists. The `input_ids` of what `apply_chat_template` or a tokenizer returns lose their
    padding, by the `attention_mask`. Messages become the token ids of what the chat template writes for them, with the
    words that ask the assistant to speak.

    Raises:
        UserError: there are messages and no tokenizer, or the chat template refuses them; the attention mask is not of
            the shape of the ids.
    """
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        return _without_padding(listed(prompt["input_ids"]), listed(prompt.get("attention_mask")))
    if isinstance(prompt, Mapping):
        raise UserError(
            f"the prompt is {_short(dict(prompt))}: give a string, token ids, or a list of messages, each with a role "
            "and content."
        )
    prompt = listed(prompt)
    if _are_messages(prompt):
        return _rendered(prompt, tokenizer)
    if isinstance(prompt, list):
        return [_rendered(entry, tokenizer) if _are_messages(entry) else entry for entry in prompt]
    return prompt


def is_token_id(value: object) -> bool:
    """Whether a value is a whole number, which a token id or `BLANK` is."""
    return isinstance(value, int) and not isinstance(value, bool)


def listed(value: Any) -> Any:
    """Turn tensors, arrays and their numbers into lists of Python's integers, also within lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [listed(entry) for entry in value]
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _without_padding(ids: Any, mask: Any) -> Any:
    if mask is None:
        return ids
    rows, masks = (ids, mask) if ids and isinstance(ids[0], list) else ([ids], [mask])
    if len(rows) != len(masks) or any(len(row) != len(of_row) for row, of_row in zip(rows, masks, strict=True)):
        raise UserError(f"attention_mask is {_short(mask)}: give a number for each of the input_ids.")
    kept = [
        [token_id for token_id, is_kept in zip(row, of_row, strict=True) if is_kept]
        for row, of_row in zip(rows, masks, strict=True)
    ]
    return kept if rows is ids else kept[0]


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def _rendered(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if tokenizer is None:
        raise UserError(f"the prompt is messages ({_short(messages)}) and tokenizer is None: give the tokenizer.")
    return dialogue_tokens(tokenizer, messages)
