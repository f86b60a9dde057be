"""The text and the bytes of single tokens, as they stand within a text."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from transformers.convert_slow_tokenizer import bytes_to_unicode

from anyorder.api.text import UNREADABLE
from anyorder.checkpoints.tokenizer.encoding import plain_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A token of SentencePiece that is a single byte."""

BYTE_OF: dict[str, int] = {character: byte for byte, character in bytes_to_unicode().items()}
"""The byte that each character of a byte-level vocabulary stands for."""


class Pieces:
    """Spells single tokens, each behind another one: alone, some tokenizers drop the space that it begins with.

    Args:
        tokenizer: of the network.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.anchor = plain_tokens(tokenizer, "a")
        self.before = self._decode(self.anchor)
        self.text = functools.lru_cache(maxsize=4096)(self._text)

    def _text(self, token_id: int) -> str:
        """Return the text of a token; bytes that are no whole character are `UNREADABLE`."""
        whole = self._decode([*self.anchor, token_id])
        return whole[len(self.before) :] if whole.startswith(self.before) else self._decode([token_id])

    def bytes(self, token_id: int) -> list[int]:
        """Return the bytes of a token, also where they are no whole character."""
        text = self.text(token_id)
        if UNREADABLE not in text:
            return list(text.encode())
        token = str(self.tokenizer.convert_ids_to_tokens(token_id))
        if found := BYTE.fullmatch(token):
            return [int(found[1], 16)]
        if all(character in BYTE_OF for character in token):
            return [BYTE_OF[character] for character in token]
        return list(text.encode())

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
