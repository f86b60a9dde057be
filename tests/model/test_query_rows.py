"""Rows that only look: they start where they stand."""

from __future__ import annotations

import math

import pytest
import torch

from anyorder.model.query_rows import FEATURES, QueryRows, features


def test_features_are_sines_and_cosines_of_the_position() -> None:
    found = features(torch.tensor([[0, 7], [3, 5000]]))
    assert found.shape == (2, 2, FEATURES)
    for b, k, position in [(0, 0, 0), (0, 1, 7), (1, 0, 3), (1, 1, 5000)]:
        for f in range(FEATURES // 2):
            angle = position * 10_000.0 ** (-f / (FEATURES // 2))
            assert found[b, k, f] == pytest.approx(math.sin(angle), abs=1e-12)
            assert found[b, k, FEATURES // 2 + f] == pytest.approx(math.cos(angle), abs=1e-12)


def test_rows_differ_by_their_position_alone() -> None:
    rows = QueryRows(16).double()(torch.tensor([[4, 9], [9, 4]]))
    assert rows.shape == (2, 2, 16)
    assert torch.equal(rows[0, 0], rows[1, 1])
    assert torch.equal(rows[0, 1], rows[1, 0])
    assert (rows[0, 0] - rows[0, 1]).abs().max() > 1e-3
