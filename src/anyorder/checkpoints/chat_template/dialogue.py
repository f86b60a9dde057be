"""From a dialogue to the token ids that a network answers: the template writes, and what people wrote stays text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.chat_template.render import chat_template, render
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens, literal_tokens, plain_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set before = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set before = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) or message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('after the system message, user and assistant must take turns') }}{% endif %}"
    "{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ((before if loop.first else '') + message.content) | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""The form of Llama 2's chat networks, whose first folders have no template (Touvron et al. 2023, and Meta's code)."""

LLAMA2_TOKENS = 32_000

_MARK = "\ue0a0{}\ue0a1"
"""Stands for a special token's name in what a person wrote, while a template is rendered: of Unicode's private use."""
_MARKS = re.compile("\ue0a0([0-9]+)\ue0a1")


def dialogue_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template of a tokenizer for dialogues: its own, Llama 2's for its vocabulary, or a plain one."""
    if not getattr(tokenizer, "chat_template", None) and _is_llama2(tokenizer):
        return LLAMA2
    return chat_template(tokenizer)


def _is_llama2(tokenizer: PreTrainedTokenizerBase) -> bool:
    names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    return tokenizer.vocab_size == LLAMA2_TOKENS and names == ("<s>", "</s>", "<unk>")


def dialogue_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Write a dialogue as token ids, up to the beginning of the assistant's next message.

    The names of special tokens in the messages stay text, so that no message can end its own turn or begin another.

    Args:
        tokenizer: of the network; gives the chat template.
        messages: each with role and content.

    Raises:
        ChatTemplateError: the template does not write these messages.
    """
    [ids] = dialogue_parts(tokenizer, messages)
    return ids


def dialogue_parts(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], cut: str | None = None
) -> list[list[int]]:
    """Write a dialogue as `dialogue_tokens` does, in parts.

    Args:
        tokenizer: of the network; gives the chat template.
        messages: each with role and content.
        cut: a text within them that separates the parts and belongs to none; None makes one part.

    Returns:
        The token ids of each part; those of all but the first go on from what is before.

    Raises:
        ChatTemplateError: the template does not write these messages.
    """
    found: list[str] = []
    names = sorted(filter(None, tokenizer.all_special_tokens), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def hide(match: re.Match[str]) -> str:
        found.append(match.group())
        return _MARK.format(len(found) - 1)

    def plain(value: Any) -> Any:
        """Hide names of special tokens within texts, wherever they are in a message."""
        if isinstance(value, str):
            return value if pattern is None else pattern.sub(hide, value)
        if isinstance(value, Mapping):
            return {key: entry if key in ("role", "type") else plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

    hidden = [plain(message) for message in messages]
    text = render(tokenizer, dialogue_template(tokenizer), hidden, add_generation_prompt=True)
    parts = []
    for index, written in enumerate([text] if cut is None else text.split(cut)):
        first, *others = _MARKS.split(written)
        # Templates write the special tokens that they want.
        ids = plain_tokens(tokenizer, first) if index == 0 else continuing_tokens(tokenizer, first)
        for number, part in zip(others[::2], others[1::2], strict=True):
            ids += literal_tokens(tokenizer, found[int(number)]) + continuing_tokens(tokenizer, part)
        parts.append(ids)
    return parts
