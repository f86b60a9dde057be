"""In which order, and how many at a time, the tokens of one text are written.

An order depends on neither the text nor the network: for `count` tokens, numbered from left to right, it returns the
group of each. A new order is a new small class.

Shape suffixes: N tokens to be written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.utils.numbers import check_positive


@dataclass(frozen=True, kw_only=True)
class Order(ABC):
    """How the tokens of a text are cut into groups, and which group is written when.

    Raises:
        UserError: a field is no whole number above 0.
    """

    def __post_init__(self) -> None:
        _check_counts(self)

    @abstractmethod
    def groups(self, count: int, rng: torch.Generator) -> Tensor:
        """Return the group of each token, counted from 0: int64 `[count]`.

        Args:
            count: number of tokens.
            rng: source of the random draws; only random orders use it.
        """


@dataclass(frozen=True, kw_only=True)
class InSequence(Order):
    """Tokens one after the other, or a few at a time.

    Attributes:
        size: tokens of a group, which are written at once; the last group may have fewer.
    """

    size: int = 1

    @abstractmethod
    def sequence(self, count: int, rng: torch.Generator) -> Tensor:
        """Return the numbers 0 to `count` - 1 in the order of writing: int64 `[count]`."""

    def groups(self, count: int, rng: torch.Generator) -> Tensor:
        group_N = torch.empty(count, dtype=torch.int64)
        group_N[self.sequence(count, rng)] = torch.arange(count) // self.size
        return group_N


class LeftToRight(InSequence):
    """From left to right."""

    def sequence(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.arange(count)


class RightToLeft(InSequence):
    """From right to left."""

    def sequence(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.arange(count - 1, -1, -1)


class Random(InSequence):
    """Every permutation equally often."""

    def sequence(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randperm(count, generator=rng)


@dataclass(frozen=True, kw_only=True)
class Spans(InSequence):
    """Neighbours stay together: spans in random order, each from left to right.

    Attributes:
        length: of the spans in the mean; each has 1 to 2 `length` - 1 tokens, all equally often.
    """

    length: int = 3

    def sequence(self, count: int, rng: torch.Generator) -> Tensor:
        lengths_N = torch.randint(1, 2 * self.length, (count,), generator=rng)  # more than enough of them
        span_N = torch.searchsorted(lengths_N.cumsum(0), torch.arange(count), right=True)
        turn_N = torch.randperm(count, generator=rng)[span_N]
        return turn_N.argsort(stable=True)


class Halves(Order):
    """The left half at once, then the right half; the middle one of an odd number goes left."""

    def groups(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.arange(count) // max(1, (count + 1) // 2)


@dataclass(frozen=True, kw_only=True)
class Spaced(Order):
    """Every `stride`-th token at once, then their right neighbours, and so on.

    Tokens of a group are far apart, so that they hardly depend on each other.

    Attributes:
        stride: distance of the tokens of a group, and the number of groups.
    """

    stride: int = 2

    def groups(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.arange(count) % self.stride


@dataclass(frozen=True, kw_only=True)
class MostConfident:
    """The network chooses the order: of all blanks, it writes those where it is surest of its token.

    Every pass predicts every blank, so a text of n blanks costs about n * n / 2 query rows, where a fixed order costs
    n. The number of passes is the same.

    Attributes:
        size: tokens that are written at once.

    Raises:
        UserError: the size is no whole number above 0.
    """

    size: int = 1

    def __post_init__(self) -> None:
        _check_counts(self)


def _check_counts(order: Order | MostConfident) -> None:
    for name, value in vars(order).items():
        check_positive(f"{name} of {type(order).__name__}", value)
