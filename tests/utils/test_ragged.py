"""Texts of several lengths in one tensor."""

from __future__ import annotations

import torch

from anyorder.utils.ragged import distinct, pad_right


def test_pad_right() -> None:
    ids_BR, position_BR, valid_BR = pad_right([[5, 6, 7], [], [8]], [2, 4, 0], torch.device("cpu"))
    assert ids_BR.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert position_BR.tolist() == [[2, 3, 4], [0, 0, 0], [0, 0, 0]]
    assert valid_BR.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert ids_BR.dtype == position_BR.dtype == torch.int64


def test_distinct() -> None:
    entries = ["b", "a", "b", "c", "a"]
    different, index_N = distinct(entries, torch.device("cpu"))
    assert different == ["b", "a", "c"]
    assert [different[index] for index in index_N.tolist()] == entries
