"""The forms in which people have prompts, as text or token ids: messages, and what transformers' tokenizers return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as _short
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.chat_template.dialogue import dialogue_tokens
from anyorder.errors import UserError
from anyorder.utils.token_lists import listed, without_padding

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
        return without_padding(prompt)
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
