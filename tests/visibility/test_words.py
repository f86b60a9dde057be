"""What an expression says of itself, and when two are the same."""

from __future__ import annotations

import pytest
import torch

from anyorder import visibility as v
from anyorder.visibility import Visibility

WORDS = {
    "everything": v.bidirectional(),
    "key.position <= query.position": v.causal(),
    "key.rank < query.rank": v.before("rank"),
    "key.position // 4 == query.position // 4": v.chunks(4),
    "not (key.position + 3 <= query.position)": v.sliding_window(3),
    "key.block // 2 + 2 <= query.block // 2": v.before("block", shift=1, div=2),
    "key.block + -1 == query.block": v.same("block", shift=-1),
    "(key.position <= query.position or key.prefix == 1)": v.prefix(),
    "(key.rank < query.rank or (key.rank == query.rank and key.stream == query.stream))": v.groups(),
    "(key.order <= query.order and (key.part < query.part or key.segment == query.segment))": v.segments(),
    "not (query.stream == 1)": ~v.query_is("stream", 1),
    "chance 0.25": v.chance(0.25, seed=3),
}


@pytest.mark.parametrize("words", WORDS)
def test_an_expression_prints_as_it_was_written(words: str) -> None:
    assert str(WORDS[words]) == words


def test_written_the_same_is_equal() -> None:
    def build() -> list[Visibility]:
        return [*(build_one() for build_one in (v.causal, v.groups, v.segments, v.block_diffusion)), ~v.chunks(5)]

    assert build() == build()
    assert [hash(one) for one in build()] == [hash(one) for one in build()]
    assert len({*build(), *build()}) == 5
    assert v.chunks(5) != v.chunks(6)
    assert v.before("rank") != v.before("part")
    assert v.chance(0.5, seed=1) != v.chance(0.5, seed=2)
    assert v.causal() & v.documents() != v.documents() & v.causal()  # the same meaning, but written otherwise
    assert v.before("rank") == v.not_after("rank", shift=1)


def test_names_are_the_labels_that_are_read() -> None:
    assert v.block_diffusion().names() == {"block", "noised"}
    assert v.annealed(0.5, seed=0).names() == {"sample", "position"}
    assert v.bidirectional().names() == set()


def test_draw() -> None:
    row = {"position": torch.tensor([[0, 1, 2]])}
    assert v.causal().draw(row, row) == "0 # . .\n1 # # .\n2 # # #"
    present = torch.tensor([[False, True, True]])
    assert v.causal().draw(row, row, present) == "0 . . .\n1 . # .\n2 . # #"


def test_draw_keeps_columns_straight_and_takes_any_sample() -> None:
    rows = {"position": torch.stack((torch.arange(11), torch.arange(11).flip(0)))}
    two_keys = {"position": torch.tensor([[0, 10], [3, 9]])}
    lines = v.causal().draw(rows, two_keys, sample=1).splitlines()
    assert lines[0] == " 0 # #"
    assert lines[1] == " 1 # #"
    assert lines[2] == " 2 # ."
    assert lines[10] == "10 . ."
    assert v.causal().draw(rows, {"position": torch.zeros(2, 0)}).splitlines()[0].rstrip() == " 0"


def test_explain() -> None:
    labels = {"rank": torch.tensor([[2, 0, 1, 0, 0]]), "stream": torch.zeros(1, 5, dtype=torch.int64)}
    rule = "(key.rank < query.rank or (key.rank == query.rank and key.stream == query.stream))"
    assert v.groups().explain(2, labels, labels) == (
        f"Row 2 (rank 1, stream 0) sees 4 of 5 keys (1-4). Rule: {rule}."
    )  # fmt: skip
    assert v.groups().explain(1, labels, labels) == (
        f"Row 1 (rank 0, stream 0) sees 3 of 5 keys (1, 3-4). Rule: {rule}."
    )
    nobody = torch.zeros(1, 5, dtype=torch.bool)
    assert v.before("rank").explain(1, labels, labels) == "Row 1 (rank 0) sees no key. Rule: key.rank < query.rank."
    assert v.bidirectional().explain(0, labels, labels, nobody) == "Row 0 sees no key. Rule: everything."
    assert v.bidirectional().explain(0, labels, labels) == "Row 0 sees 5 of 5 keys (0-4). Rule: everything."
