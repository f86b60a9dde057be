"""A tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from anyorder.data import train_tokenizer
from anyorder.data.tokenizer import END_OF_TEXT
from anyorder.errors import UserError

TEXT = "def f(x):\n    return x  # naïve 日本 🙂\n\ttab  two spaces\n"


def test_every_text_comes_back_whole(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["def f(x):\n    return x\n" * 3], 300)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = one(TEXT)["input_ids"]
        assert one.decode(ids) == TEXT
        assert max(ids) < len(one)
        assert one.eos_token == END_OF_TEXT
        assert one(END_OF_TEXT)["input_ids"] == [one.eos_token_id]


def test_words_that_come_often_are_one_token() -> None:
    tokenizer = train_tokenizer(["the end of the end of the end " * 4], 300)
    assert len(tokenizer(" the end of the end")["input_ids"]) == 5


def test_vocabulary_has_room_for_all_bytes() -> None:
    with pytest.raises(UserError, match=r"vocab_size is 256: give at least 257, all bytes and the end token\."):
        train_tokenizer(["a"], 256)


def test_a_mask_token_that_no_text_has_by_accident() -> None:
    tokenizer = train_tokenizer(["the end"], 300, mask_token="<|mask|>")
    assert tokenizer("<|mask|>")["input_ids"] == [tokenizer.mask_token_id]
    assert tokenizer.mask_token_id != tokenizer.eos_token_id
    assert train_tokenizer(["the end"], 300).mask_token is None
    with pytest.raises(UserError, match="give at least 258, all bytes and the end and mask tokens"):
        train_tokenizer(["a"], 257, mask_token="<|mask|>")
