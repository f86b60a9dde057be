"""Texts and packed rows."""

from __future__ import annotations

import pytest
import torch

from anyorder.data import pack, python_texts
from anyorder.errors import UserError


def test_python_texts_are_the_same_at_every_call() -> None:
    texts = python_texts(50_000)
    assert texts == python_texts(50_000)
    assert any('The "if" statement' in text for text in texts)


def test_python_texts_take_about_as_much_source_as_asked() -> None:
    documentation, some, more = (python_texts(size) for size in (0, 1, 200_000))
    assert sum(map(len, documentation)) > 300_000
    assert len(some) == len(documentation) + 1  # whole modules
    assert more[: len(some)] == some
    assert 200_000 <= sum(len(text.encode()) for text in more[len(documentation) :]) < 400_000


def test_pack_closes_each_document_and_drops_the_rest() -> None:
    rows = pack([[1, 2, 3], [], [4, 5], [6, 7]], length=3, end_token_id=0)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[1, 2, 3], [0, 0, 4], [5, 0, 6]]


def test_pack_needs_one_row() -> None:
    with pytest.raises(UserError, match=r"the texts have 3 tokens: give at least 4, the length of one row\."):
        pack([[1, 2]], length=4, end_token_id=0)
