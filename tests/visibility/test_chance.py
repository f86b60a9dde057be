"""The seeded hash: its rate, its independence of the batch, and its use for annealing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from anyorder.visibility import annealed, causal, chance

LENGTH = 400

# A fair hash leaves this many standard deviations by chance less than once in a million comparisons. Over the
# 160,000 pairs of one mask, a rate that is off by 0.01 lies 8 or more standard deviations away: it would be found.
DEVIATIONS = 5.0


def table(samples: list[int], length: int = LENGTH, first: int = 0) -> dict[str, Tensor]:
    sample = torch.tensor(samples).unsqueeze(1).expand(-1, length)
    return {"sample": sample, "position": torch.arange(first, first + length).expand(len(samples), -1)}


def within(count: int, trials: int, rate: float) -> bool:
    return abs(count - trials * rate) <= DEVIATIONS * math.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_rate(rate: float, seed: int) -> None:
    labels = table([0, 1, 7])
    mask = chance(rate, seed).mask(labels, labels)
    for seen in mask:
        assert within(int(seen.sum()), seen.numel(), rate)
    # No key and no row has a rate of its own: the counts spread as a binomial does. If rates differed by 0.02 from row
    # to row, the ratio of spreads would be 1.6 or more; the bound below is 5 standard deviations of the ratio, 1.2.
    for counts in (mask.sum(1), mask.sum(2)):
        ratio = (counts - LENGTH * rate).square().mean() / (LENGTH * rate * (1 - rate))
        assert abs(float(ratio) - 1) < DEVIATIONS * math.sqrt(2 / counts.numel())


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_pairs_are_independent(rate: float) -> None:
    """Neighbouring rows, neighbouring keys, samples, seeds: both are seen at rate * rate."""
    labels = table([0, 1])
    one, other = chance(rate, 3).mask(labels, labels)
    another = chance(rate, 2).mask(labels, labels)
    twins = [
        (one, other),
        (one, another[0]),
        (one, another[1]),  # seed 3 ^ sample 0 == seed 2 ^ sample 1: must not be the same draw
        (one[1:], one[:-1]),
        (one[:, 1:], one[:, :-1]),
        (one, one.T),
    ]
    for left, right in twins:
        off_diagonal = ~torch.eye(*left.shape, dtype=torch.bool) if left.shape[0] == left.shape[1] else left | True
        both = (left & right)[off_diagonal]
        assert within(int(both.sum()), both.numel(), rate * rate)


def test_the_first_pair_of_all_is_a_draw_too() -> None:
    """Sample 0, seed 0, row 0, key 0: hashes of zeros are often zero, and zero is below every rate."""
    first = table([0], length=1)
    seen = [bool(chance(0.5, seed).mask(first, first)) for seed in range(400)]
    assert within(sum(seen), 400, 0.5)
    assert not chance(1e-6, 0).mask(first, first).any()


def test_batch_and_slots_play_no_part() -> None:
    """A pair is drawn from its sample and its two positions, wherever they stand."""
    visibility = chance(0.5, 11)
    together = visibility.mask(table([4, 9, 2]), table([4, 9, 2]))
    for place, sample in enumerate([4, 9, 2]):
        alone = table([sample])
        assert torch.equal(visibility.mask(alone, alone)[0], together[place])
    order = torch.randperm(LENGTH)
    shuffled = {name: label[:, order] for name, label in table([4]).items()}
    assert torch.equal(visibility.mask(shuffled, table([4]))[0], together[0][order])
    part = table([9], length=10, first=100)
    assert torch.equal(visibility.mask(part, table([9]))[0], together[1][100:110])


def test_a_higher_rate_sees_no_less() -> None:
    """Annealing only adds: what was seen at a lower rate stays seen."""
    labels = table([0], 50)
    masks = [annealed(rate, 5).mask(labels, labels) for rate in (0.0, 0.1, 0.4, 0.8, 1.0)]
    assert all(bool((less <= more).all()) for less, more in itertools.pairwise(masks))
    assert torch.equal(masks[0], causal().mask(labels, labels))
    assert bool(masks[-1].all())
