"""Rows that only look: they start where they stand."""

from __future__ import annotations

import math

import pytest
import torch

from anyorder.model.modes import ANY_ORDER
from anyorder.model.query_rows import FEATURES, QueryRows, features
from anyorder.visibility import causal, groups
from tests.model.networks import network


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


@pytest.mark.usefixtures("float64")
def test_two_streams_are_rows_put_one_behind_the_other() -> None:
    model = network(modes=(ANY_ORDER,))
    assert model.query_rows is not None
    ids, position = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 2, 1, 3]])
    stream = torch.tensor([[0, 0, 0, 1, 1]])
    labels = {"position": position, "rank": torch.tensor([[0, 1, 2, 1, 3]]), "stream": stream}
    found = model.two_streams(ids, position[:, 3:], model.prepare(groups(), labels, n_keys=3))
    rows = torch.cat((model.model.embed_tokens(ids), model.query_rows(position[:, 3:])), 1)
    assert torch.equal(found, model.read(rows, model.prepare(groups(), labels, n_keys=3)))


@pytest.mark.usefixtures("float64")
def test_without_query_rows_two_streams_are_one() -> None:
    """And what would make query rows has a gradient, so that no process waits for it."""
    ids, position = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 2]])
    for modes in ((ANY_ORDER,), ()):
        model = network(modes=modes) if modes else network()
        found = model.two_streams(ids, position[:, 3:], model.prepare(causal(), {"position": position}))
        assert torch.equal(found, model.hidden(ids, model.prepare(causal(), {"position": position})))
        found.sum().backward()
        for weight in () if model.query_rows is None else model.query_rows.parameters():
            assert weight.grad is not None
            assert not weight.grad.any()
