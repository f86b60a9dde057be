"""Orders compared by likelihood and by success, and the order that was taken."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder import GroupPlan
from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Trace, Written, collect
from anyorder.errors import UserError
from anyorder.evaluation.order_search import by_likelihood, by_success, orders_taken
from anyorder.likelihood.exact import log_prob
from anyorder.orders.kinds import LeftToRight, MostConfident, Order, Random, RightToLeft
from tests.decoding.any_order.test_decoder import writer
from tests.model.networks import random_ids


def trace_of(positions: list[int], steps: list[int] | None = None, row: int = 0) -> Trace:
    steps = list(range(len(positions))) if steps is None else steps
    events = [Written(step, row, at, 5, -1.0) for step, at in zip(steps, positions, strict=True)]
    return Trace(tuple(events), len(positions), 0.0)


# ---- the order taken --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(positions=st.permutations(range(7)))
def test_tau_is_the_share_of_ordered_pairs(positions: list[int]) -> None:
    [taken] = orders_taken(trace_of(positions))
    pairs = [(a, b) for i, a in enumerate(positions) for b in positions[i + 1 :]]
    assert taken.tau == pytest.approx(sum(1 if a < b else -1 for a, b in pairs) / len(pairs))
    assert taken.positions == tuple(positions)
    assert taken.jump == pytest.approx(sum(abs(b - a) for a, b in itertools.pairwise(positions)) / 6)


def test_left_to_right_right_to_left_and_all_at_once() -> None:
    [forth], [back] = orders_taken(trace_of([3, 4, 6, 7])), orders_taken(trace_of([7, 6, 4, 3]))
    assert [forth.tau, forth.neighbours, forth.jump] == pytest.approx([1, 2 / 3, 4 / 3])
    assert [back.tau, back.neighbours] == pytest.approx([-1, 0])
    [pairs] = orders_taken(trace_of([0, 1, 2, 3], [0, 0, 1, 1]))
    assert 0 < pairs.tau < 1
    [at_once] = orders_taken(trace_of([0, 1, 2], [0, 0, 0]))
    assert math.isnan(at_once.tau)
    [single] = orders_taken(trace_of([4]))
    assert math.isnan(single.jump)
    assert math.isnan(single.neighbours)


def test_edits_do_not_count_and_rows_are_apart() -> None:
    two = Trace.join([trace_of([2, 0, 2], row=1), trace_of([0, 1], row=4)])
    one, other = orders_taken(two)
    assert (one.row, one.positions, other.row, other.positions) == (1, (2, 0), 4, (0, 1))


# ---- likelihood -------------------------------------------------------------------------------------


def test_orders_by_likelihood() -> None:
    texts = random_ids(6, 4, 5)
    orders: dict[str, Order] = {"forth": LeftToRight(), "back": RightToLeft(), "random": Random()}
    counted: list[int] = []
    found = by_likelihood(writer(), texts, orders, draws=3, batch_size=2, done=counted.append)
    assert sum(counted) == 3 * 3 * 3
    assert [order.per_token for order in found] == sorted((order.per_token for order in found), reverse=True)
    named = {order.name: order for order in found}
    assert set(named) == set(orders)
    exact = [float(log_prob(writer(), text, GroupPlan.sequential(len(text), given=[1])).total) for text in texts]
    assert named["forth"].texts == pytest.approx(exact, abs=1e-9)
    assert named["forth"].per_token == pytest.approx(sum(exact) / 12)
    assert named["forth"].between_draws == pytest.approx(0, abs=1e-9)
    drawn = [
        [
            float(log_prob(writer(), text, GroupPlan.random([len(text)], [1], seed=seed, samples=[number])).total)
            for number, text in enumerate(texts)
        ]
        for seed in range(3)
    ]
    means = torch.tensor(drawn).double().mean(0)
    assert named["random"].texts == pytest.approx(means.tolist(), abs=1e-6)
    assert named["random"].between_draws == pytest.approx(float(torch.tensor(drawn).double().std(0).mean()), abs=1e-6)
    assert named["random"].standard_error > 0
    [alone] = by_likelihood(writer(), texts[:1], {"forth": LeftToRight()})
    assert alone.standard_error == 0


def test_given_tokens_are_not_scored() -> None:
    [ids] = random_ids(6)
    given = [[True, False, False, True, True, False]]
    [found] = by_likelihood(writer(), [ids], {"back": RightToLeft()}, given)
    plan = GroupPlan.from_group_ids([[0, 3, 2, 0, 0, 1]], given)
    assert found.texts[0] == pytest.approx(float(log_prob(writer(), ids, plan).total), abs=1e-9)


# ---- success ----------------------------------------------------------------------------------------


def test_orders_by_success() -> None:
    """The solutions are what one of the orders writes, so that this one always succeeds."""
    canvases = [[1, BLANK, BLANK, BLANK], [BLANK, 5, BLANK], [BLANK] * 5]
    steps = any_order_steps(writer(), canvases, RightToLeft(), sampling=Sampling(), sample_ids=range(3))
    solutions = collect(steps, canvases, range(3), ()).sequences
    tasks = list(zip(canvases, solutions, strict=True))
    orders: dict[str, Any] = {"forth": LeftToRight(), "back": RightToLeft(), "own choice": MostConfident()}
    best, *others = by_success(writer(), tasks, orders, batch_size=2)
    assert (best.name, best.solved, best.tokens) == ("back", 1.0, 1.0)
    assert [taken.tau for taken in best.taken] == pytest.approx([-1, -1, -1])
    assert best.passes == 3 + 5
    assert all(other.solved < 1 for other in others)
    for other in others:
        rows = by_success(writer(), tasks, {other.name: orders[other.name]}, batch_size=3)
        assert (rows[0].solved, rows[0].tokens) == (other.solved, other.tokens)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: by_likelihood(writer(), [], {"a": Random()}), r"^there are 0 texts and 1 orders: give at"),
        (lambda: by_success(writer(), [([BLANK], [3])], {}), r"^there are 1 tasks and 0 orders: give at"),
        (lambda: by_success(writer(), [([BLANK], [3, 4])], {"a": Random()}), r"^the solution of task 0 is another"),
        (lambda: by_success(writer(), [([5, BLANK], [3, 4])], {"a": Random()}), r"^the solution of task 0 is another"),
    ],
)  # fmt: skip
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
