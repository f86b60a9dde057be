"""From text to token ids: what begins a text, what ends it, and what goes on. Nothing else calls a tokenizer on text.

Tokenizers put tokens of their own around a text: one or several that begin it, in some cases one that ends it. A prompt
begins with them once, whether or not it carries them written out, as what a chat template writes does, and it never
ends in what they add. A text that is trained on begins like a prompt and ends in exactly one end token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anyorder.errors import UserError
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", "a", ".")
"""Texts to go on from; of the first that leaves its own tokens alone the rest is what the text is made of."""


SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which no tokenizer takes."""


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text alone, without any that begin or end one."""
    return plain_tokens_of(tokenizer, [text])[0]


def plain_tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the same for each of several texts, in one call of the tokenizer.

    Raises:
        UserError: a text has half a character.
    """
    if not texts:
        return []
    for text in texts:
        if SURROGATE.search(text):
            raise UserError(f"the text {shown(text)} has half a character (a surrogate alone): write it anew as UTF-8.")
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text that is to be continued: it begins once, and has no end that is not written in it."""
    return _begun(begin_tokens(tokenizer), plain_tokens(tokenizer, text))


def continuing_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text that goes on: none that begins a text, and no space that was not there."""
    if not text:
        return []
    anchors = ANCHORS if not text[0].isspace() else (*ANCHORS[1:], ANCHORS[0])
    for anchor in anchors:
        before, whole = plain_tokens_of(tokenizer, [anchor, anchor + text])
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return plain_tokens(tokenizer, text)


def literal_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that goes on, in which the names of special tokens are plain characters."""
    if not text:
        return []
    for anchor in ANCHORS[1:]:
        before, whole = (
            tokenizer(part, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            for part in (anchor, anchor + text)
        )
        if whole[: len(before)] == before:
            return list(whole[len(before) :])
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def document_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], end_token_id: int | None
) -> list[list[int]]:
    """Return the tokens of each text that is trained on as a whole: it begins once and ends in exactly one end token.

    Args:
        tokenizer: of the network.
        texts: any number.
        end_token_id: closes each text, also where the tokenizer has another end; None for no end.
    """
    begin = begin_tokens(tokenizer)
    if end_token_id is None:
        return [_begun(begin, ids) for ids in plain_tokens_of(tokenizer, texts)]
    # What a chat template writes ends with a line break behind its last end token.
    end = str(tokenizer.convert_ids_to_tokens(end_token_id))
    texts = [stripped if (stripped := text.rstrip()).endswith(end) else text for text in texts]
    documents = [_begun(begin, ids) for ids in plain_tokens_of(tokenizer, texts)]
    for ids in documents:
        while ids and ids[-1] == end_token_id:
            ids.pop()
        ids.append(end_token_id)
    return documents


def begin_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts before each text."""
    return added_tokens(tokenizer)[0]


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before each text and those that it puts behind it."""
    plain = plain_tokens(tokenizer, "a")
    whole: list[int] = tokenizer("a", verbose=False)["input_ids"]
    starts = range(len(whole) - len(plain) + 1)
    begin = next((at for at in starts if whole[at : at + len(plain)] == plain), 0)
    return whole[:begin], whole[begin + len(plain) :]


def _begun(begin: Sequence[int], ids: list[int]) -> list[int]:
    """Return the ids behind what begins a text, of which they may carry all or the last part already."""
    carried = next(count for count in range(len(begin), -1, -1) if ids[:count] == list(begin[len(begin) - count :]))
    return [*begin[: len(begin) - carried], *ids]
