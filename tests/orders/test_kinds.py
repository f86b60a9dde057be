"""Orders: each token is in one group, sizes are as promised, and random ones are fair."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.errors import UserError
from anyorder.orders.kinds import (
    Halves,
    InSequence,
    LeftToRight,
    MostConfident,
    Order,
    Random,
    RightToLeft,
    Spaced,
    Spans,
)
from anyorder.utils.rng import generator

SEQUENCES = (LeftToRight, RightToLeft, Random, Spans)


def written(order: Order, count: int, seed: int = 0) -> list[list[int]]:
    """The tokens of each group, first to be written first."""
    group = order.groups(count, generator(seed)).tolist()
    return [[token for token in range(count) if group[token] == which] for which in range(max(group) + 1)]


@pytest.mark.parametrize(
    ("order", "groups"),
    [
        (LeftToRight(), [[0], [1], [2], [3], [4]]),
        (LeftToRight(size=2), [[0, 1], [2, 3], [4]]),
        (RightToLeft(), [[4], [3], [2], [1], [0]]),
        (RightToLeft(size=3), [[2, 3, 4], [0, 1]]),
        (Halves(), [[0, 1, 2], [3, 4]]),
        (Spaced(), [[0, 2, 4], [1, 3]]),
        (Spaced(stride=3), [[0, 3], [1, 4], [2]]),
    ],
)
def test_fixed_orders(order: Order, groups: list[list[int]]) -> None:
    assert written(order, 5) == groups


@pytest.mark.parametrize("kind", SEQUENCES)
@given(count=st.integers(1, 20), size=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_sequences_are_cut_into_groups(kind: type[InSequence], count: int, size: int, seed: int) -> None:
    order = kind(size=size)
    sequence = order.sequence(count, generator(seed)).tolist()
    assert sorted(sequence) == list(range(count))
    assert written(order, count, seed) == [sorted(sequence[i : i + size]) for i in range(0, count, size)]


@given(count=st.integers(1, 40), length=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_spans_are_neighbours_from_left_to_right(count: int, length: int, seed: int) -> None:
    """The slow twin: cut the text by hand with the same draws, and shuffle the pieces."""
    draws = generator(seed)
    lengths = torch.randint(1, 2 * length, (count,), generator=draws).tolist()
    turns = torch.randperm(count, generator=draws).tolist()
    tokens = list(range(count))
    pieces: list[list[int]] = []
    while tokens:
        size = lengths[len(pieces)]
        pieces.append(tokens[:size])
        tokens = tokens[size:]
    shuffled = [pieces[i] for i in sorted(range(len(pieces)), key=lambda i: turns[i])]
    assert Spans(length=length).sequence(count, generator(seed)).tolist() == [t for piece in shuffled for t in piece]


def test_spans_have_the_promised_mean_and_are_uniform() -> None:
    """Spans of 1 to 5 tokens: 400 texts of 300 tokens; the standard error of the mean is about 0.006."""
    starts = Counter[int]()
    spans = 0
    for seed in range(400):
        sequence = Spans(length=3).sequence(300, generator(seed))
        jumps = int((sequence.diff() != 1).sum()) + 1  # neighbouring spans meet in order once per text in the mean
        spans += jumps + 1
        starts[int(sequence[0]) // 100] += 1
    assert 300 * 400 / spans == pytest.approx(3, abs=0.05)
    assert min(starts.values()) > 90  # 133 expected each, five standard deviations away


def test_random_orders_are_all_equally_often() -> None:
    """Chi-squared over the 24 permutations of 4 in 4800 draws: 23 degrees of freedom, p = 1e-4 at 56."""
    seen = Counter(tuple(Random().sequence(4, generator("order", 0, sample)).tolist()) for sample in range(4800))
    assert len(seen) == 24
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 56


def test_orders_are_values() -> None:
    assert Random(size=2) == Random(size=2) != Random()
    orders: list[Order] = [LeftToRight(), RightToLeft()]
    assert orders[0] != orders[1]
    assert str(Spans(length=4)) == "Spans(size=1, length=4)"


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_sizes_are_counts(size: object) -> None:
    with pytest.raises(UserError) as error:
        Random(size=size)
    assert str(error.value) == f"size of Random is {size!r}: give a whole number above 0."
    with pytest.raises(UserError, match=r"^stride of Spaced is"):
        Spaced(stride=size)


def test_draws_depend_on_all_of_the_key() -> None:
    first = torch.rand(4, generator=generator("order", 0, 1))
    assert torch.equal(first, torch.rand(4, generator=generator("order", 0, 1)))
    for other in (("order", 1, 0), ("order", 0, 11), ("mask", 0, 1), ("order", 0)):
        assert not torch.equal(first, torch.rand(4, generator=generator(*other)))


def test_a_size_that_cannot_be() -> None:
    for size in (0, True):
        with pytest.raises(UserError, match=rf"^size of MostConfident is {size}: give a whole number above 0\.$"):
            MostConfident(size=size)
