"""Commit rules: which of a text's candidates are written in a step.

To add one, subclass `Commit`, or `Count` where only the number is to be decided; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from anyorder.utils.annotations import check_fields, requirement


@dataclass(frozen=True)
class BlockProgress:
    """Where a text is in its block.

    Attributes:
        masks: masked positions when the block began.
        step: number of this step in the block, from 0.
        steps: planned for the block.
    """

    masks: int
    step: int
    steps: int


class Commit(ABC):
    """A rule that selects the positions to write.

    Attributes:
        planned: whether a block is over after its planned steps, masks or not; otherwise it takes as many as it needs,
            and each step must select at least one position.
    """

    planned: ClassVar[bool] = False

    @abstractmethod
    def select(self, confidence: Sequence[float], positions: Sequence[int], progress: BlockProgress) -> Iterable[int]:
        """Return some of the positions.

        Args:
            confidence: of each candidate; a row of numbers where the confidence function gives several.
            positions: the candidates, at least one, in ascending order.
            progress: of the text in its block.
        """


class Count(Commit):
    """The simple case: a rule that says how many positions to write, those of highest confidence.

    Of equals, the lowest position is first.
    """

    @abstractmethod
    def count(self, ranked: Sequence[float], progress: BlockProgress) -> int:
        """Return how many candidates to write.

        Args:
            ranked: their confidences, the highest first; at least one.
            progress: of the text in its block.
        """

    def select(self, confidence: Sequence[float], positions: Sequence[int], progress: BlockProgress) -> Iterable[int]:
        """Return the positions of highest confidence."""
        ranked = sorted(zip(confidence, positions, strict=True), key=lambda candidate: -candidate[0])
        count = self.count([number for number, _ in ranked], progress)
        return [position for _, position in ranked[:count]]


@dataclass(frozen=True)
class PerStep(Count):
    """LLaDA's: the block's masks in equal parts, the first steps one more where they do not divide."""

    planned = True

    def count(self, ranked: Sequence[float], progress: BlockProgress) -> int:
        each, more = divmod(progress.masks, progress.steps)
        return each + (progress.step < more)


@dataclass(frozen=True)
class Timesteps(Count):
    """Dream's: from time t to s, the share 1 - s / t of the masks that are left; all of them in the last step.

    Attributes:
        end: the time of the last step; the first one is 1.
    """

    end: float = 1e-3
    planned = True

    def count(self, ranked: Sequence[float], progress: BlockProgress) -> int:
        if progress.step == progress.steps - 1:
            return len(ranked)
        time = torch.linspace(1, self.end, progress.steps + 1)  # float32: the rounding decides, as published
        return int(len(ranked) * (1 - time[progress.step + 1] / time[progress.step]))


@dataclass(frozen=True)
class Threshold(Count):
    """Fast-dLLM's: all whose confidence is above `above`, at least one."""

    above: float

    def __post_init__(self) -> None:
        check_fields(self)
        requirement(self, "threshold")("above", 0 <= self.above <= 1, "give a number from 0 to 1")

    def count(self, ranked: Sequence[float], progress: BlockProgress) -> int:
        return max(1, sum(confidence > self.above for confidence in ranked))


@dataclass(frozen=True)
class Factor(Count):
    """Fast-dLLM's: the n-th surest as long as its confidence is at least 1 - factor / (n + 1), at least one.

    Attributes:
        factor: the higher, the more.
        last_together: the published code writes the least sure one as well where all others are written, so that the
            last two of a block always go together.
    """

    factor: float
    last_together: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        requirement(self)("factor", self.factor > 0, "give a number above 0")

    def count(self, ranked: Sequence[float], progress: BlockProgress) -> int:
        sure = 1
        while sure < len(ranked) and ranked[sure] >= 1 - self.factor / (sure + 2):  # the (sure + 1)-th
            sure += 1
        return len(ranked) if self.last_together and sure == len(ranked) - 1 else sure


@dataclass(frozen=True)
class EntropyBound(Count):
    """As many as keep a bound on what is lost by writing them at once; for the confidence "entropy".

    The tokens of a step are chosen as if they were independent. What that neglects is at most the sum of their
    entropies less the largest one.

    Attributes:
        bound: in nats.
    """

    bound: float

    def __post_init__(self) -> None:
        check_fields(self)
        requirement(self, "entropy_bound")("bound", self.bound >= 0, "give a number of nats from 0 on")

    def count(self, ranked: Sequence[float], progress: BlockProgress) -> int:
        neglected, sure = 0.0, 1
        for before in ranked[:-1]:  # entropies rise along the ranking, so the largest is the candidate's own
            neglected -= before
            if neglected > self.bound:
                break
            sure += 1
        return sure
