"""Single tokens: their texts, joined, are the text, and so are their bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from anyorder.checkpoints.tokenizer.encoding import continuing_tokens
from anyorder.serving.pieces import Pieces
from tests.data.tokenizers import characters
from tests.writers import byte_tokenizer, sentencepiece_tokenizer


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece_tokenizer, characters])
def test_pieces_joined_are_the_text(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    pieces = Pieces(tokenizer)
    plain = " upon a time there was one"
    ids = continuing_tokens(tokenizer, plain)
    assert "".join(pieces.text(token_id) for token_id in ids) == plain
    text = plain if make is characters else " naïve café 😀"
    ids = continuing_tokens(tokenizer, text)
    assert bytes(byte for token_id in ids for byte in pieces.bytes(token_id)).decode() == text
