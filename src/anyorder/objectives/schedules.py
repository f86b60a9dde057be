"""Curricula of orders over the steps of a training."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from anyorder.errors import UserError
from anyorder.orders.kinds import LeftToRight, Order, Random
from anyorder.utils.annotations import check_fields


class Schedule(ABC):
    """Gives each sample its order."""

    @abstractmethod
    def order(self, step: int, u: float) -> Order:
        """The order of a sample in an optimizer step.

        Args:
            step: counted from 0.
            u: drawn for the sample, even from 0 to 1, for schedules that choose among orders.
        """


@dataclass(frozen=True)
class Always(Schedule):
    """One order from first to last."""

    kind: Order = field(default_factory=Random)

    def order(self, step: int, u: float) -> Order:
        return self.kind


@dataclass(frozen=True)
class Stages(Schedule):
    """One order after the other.

    Attributes:
        stages: the step from which each holds, the first being 0.

    Raises:
        UserError: no stage begins at step 0.
    """

    stages: Mapping[int, Order]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.stages or min(self.stages) != 0:
            raise UserError(f"the stages begin at steps {sorted(self.stages)}: let the first begin at 0.")

    def order(self, step: int, u: float) -> Order:
        return self.stages[max(begin for begin in self.stages if begin <= step)]


def growing(every: int, sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Stages:
    """Random groups that grow, as in A3 (arXiv 2601.13228): a size from `sizes` for `every` steps each.

    Raises:
        UserError: `every` is not above 0.
    """
    if every < 1:
        raise UserError(f"every is {every}: give a number of steps above 0.")
    return Stages({turn * every: Random(size=size) for turn, size in zip(itertools.count(), sizes, strict=False)})


@dataclass(frozen=True, kw_only=True)
class Annealing(Schedule):
    """From one order to another: the share of samples that have the second rises evenly over `steps`.

    From random to left to right as in RAR (arXiv 2411.00776), or the reverse as in sigma-GPT (arXiv 2404.09562).

    Attributes:
        first, last: the orders.
        steps: from step `begin` on; before it all samples have the first, after it the last.

    Raises:
        UserError: `steps` is not above 0.
    """

    steps: int
    first: Order = field(default_factory=Random)
    last: Order = field(default_factory=LeftToRight)
    begin: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: give the number of steps of the annealing, above 0.")

    def order(self, step: int, u: float) -> Order:
        return self.last if u < (step - self.begin) / self.steps else self.first
