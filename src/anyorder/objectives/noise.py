"""How much of a text is masked, and what: draws that depend on the seed and the sample alone.

Shape suffixes: L tokens of a sample, J times of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.utils.annotations import check_fields
from anyorder.utils.numbers import check_positive
from anyorder.utils.rng import generator


class Times(ABC):
    """Draws the times t of a sample, each uniform from 0 to 1: at time t, about that share of the tokens is masked."""

    @abstractmethod
    def draw(self, seed: int, sample: int, count: int = 1) -> Tensor:
        """float64 `[count]`: one for the text, or one for each of its blocks."""


@dataclass(frozen=True)
class Independent(Times):
    """Each by itself."""

    def draw(self, seed: int, sample: int, count: int = 1) -> Tensor:
        return torch.rand(count, generator=generator("time", seed, sample), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Stratified(Times):
    """Of `strata` consecutive times, one in each `strata`-th of the unit interval: a loss that varies less.

    Attributes:
        strata: best the number of samples in a step, or of blocks in a text.
    """

    strata: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("strata", self.strata, ", such as the samples of a step")

    def draw(self, seed: int, sample: int, count: int = 1) -> Tensor:
        number_J = sample * count + torch.arange(count)
        # Each round of strata begins elsewhere, or a sample that comes again would keep its stratum.
        begin_J = torch.tensor([self._begin(seed, number) for number in (number_J // self.strata).tolist()])
        inside_J = Independent().draw(seed, sample, count)
        return ((number_J + begin_J) % self.strata + inside_J) / self.strata

    def _begin(self, seed: int, turn: int) -> int:
        return int(torch.randint(self.strata, (), generator=generator("stratum", seed, turn)))


@dataclass(frozen=True)
class Antithetic(Times):
    """Samples 2n and 2n + 1 have t and 1 - t."""

    def draw(self, seed: int, sample: int, count: int = 1) -> Tensor:
        time_J = Independent().draw(seed, sample // 2, count)
        return 1 - time_J if sample % 2 else time_J


def mask_probability(time: Tensor, eps: float) -> Tensor:
    """`(1 - eps) t + eps`: never so small that its inverse, the weight of a loss, is without bound."""
    return (1 - eps) * time + eps


def masked(probability_L: Tensor, seed: int, sample: int) -> Tensor:
    """Which tokens of a sample are masked, each with its own probability: boolean `[length]`."""
    draws = generator("mask", seed, sample)
    return torch.rand(len(probability_L), generator=draws, dtype=torch.float64) < probability_L


def check_eps(eps: float) -> None:
    """Refuses a lowest probability with which weights would be without bound, or nothing would be noise."""
    if not 0 < eps <= 1:
        raise UserError(f"eps is {eps}: give a number above 0 and at most 1, such as 1e-3.")
