"""How many candidates each rule writes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyorder.decoding.diffusion.commit import (
    BlockProgress,
    Commit,
    EntropyBound,
    Factor,
    PerStep,
    Threshold,
    Timesteps,
)
from anyorder.errors import UserError

START = BlockProgress(masks=4, step=0, steps=4)
confidences = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(lambda values: sorted(values, reverse=True))


@given(masks=st.integers(1, 40), steps=st.integers(1, 60))
def test_equal_parts_with_the_rest_in_the_first_steps(masks: int, steps: int) -> None:
    counts = [PerStep().count([0.5], BlockProgress(masks, step, steps)) for step in range(steps)]
    assert sum(counts) == masks
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@given(masks=st.integers(1, 40), steps=st.integers(1, 60))
def test_timesteps_leave_the_share_of_time_that_is_left(masks: int, steps: int) -> None:
    left = masks
    for step in range(steps):
        time, after = (1 - at * (1 - 1e-3) / steps for at in (step, step + 1))
        count = Timesteps().count([0.5] * left, BlockProgress(masks, step, steps))
        if step < steps - 1:
            assert count <= left * (1 - after / time) + 1e-3
            assert count > left * (1 - after / time) - 1 - 1e-3
        left -= count
    assert left == 0


@given(confidences, st.floats(0, 1))
def test_all_above_a_threshold(ranked: list[float], above: float) -> None:
    assert Threshold(above).count(ranked, START) == max(1, len([value for value in ranked if value > above]))


@given(confidences, st.floats(0.01, 3), st.booleans())
def test_factor_in_words(ranked: list[float], factor: float, last_together: bool) -> None:
    passes = [n == 1 or confidence >= 1 - factor / (n + 1) for n, confidence in enumerate(ranked, start=1)]
    count = len(list(itertools.takewhile(bool, passes)))
    if last_together and count == len(ranked) - 1:
        count += 1
    assert Factor(factor, last_together=last_together).count(ranked, START) == count


def test_the_published_factor_never_leaves_a_single_mask() -> None:
    assert Factor(0.1).count([0.2, 0.1], START) == 1
    assert Factor(0.1, last_together=True).count([0.2, 0.1], START) == 2


@given(st.lists(st.floats(0, 3), min_size=1, max_size=20).map(sorted), st.floats(0, 5))
def test_entropy_bound(entropies: list[float], bound: float) -> None:
    fits = [n for n in range(1, len(entropies) + 1) if sum(entropies[:n]) - max(entropies[:n]) <= bound + 1e-12]
    tight = [n for n in range(1, len(entropies) + 1) if sum(entropies[:n]) - max(entropies[:n]) <= bound - 1e-12]
    count = EntropyBound(bound).count([-entropy for entropy in entropies], START)
    assert max(tight, default=1) <= count <= max(fits, default=1)


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (Threshold, 1.5, "threshold is 1.5: give a number from 0 to 1."),
        (Factor, 0, "factor is 0: give a number above 0."),
        (EntropyBound, -1, "entropy_bound is -1: give a number of nats from 0 on."),
    ],
)
def test_rules_that_cannot_be_are_refused(rule: type[Commit], value: float, message: str) -> None:
    with pytest.raises(UserError) as caught:
        rule(value)  # type: ignore[call-arg]
    assert str(caught.value) == message
