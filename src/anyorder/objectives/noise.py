"""Which tokens of a text are masked: random draws that depend on the seed and the sample alone.

Shape suffixes: B batch, L tokens of a sample, J times of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.modes import KINDS
from anyorder.objectives.inputs import Batch, Objective
from anyorder.utils.annotations import check_fields, shown
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


@dataclass(frozen=True, kw_only=True)
class MaskingObjective(Objective):
    """An objective that masks tokens at random and learns them, with a weight of one over the probability.

    Attributes:
        mask_token_id: the token that hides others.
        eps: the lowest probability of being masked.
        times: how the times of a sample are drawn.
        mode_name: the mode that is learnt, one that diffuses.

    Raises:
        UserError: a field has a value that cannot be.
    """

    mask_token_id: int
    eps: float = 1e-3
    times: Times = field(default_factory=Independent)
    mode_name: str = "diffusion"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.eps <= 1:
            raise UserError(f"eps is {self.eps}: give a number above 0 and at most 1, such as 1e-3.")
        diffusing = [name for name, kind in KINDS.items() if kind.diffuses]
        if self.mode_name not in diffusing:
            raise UserError(f"mode_name is {shown(self.mode_name)}: give one of {', '.join(diffusing)}.")

    def draw_masks(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """Draw which tokens of the loss mask are masked, each sample by itself.

        Returns:
            The masked tokens, boolean, and the probability of that, float64, both `[batch, length]`.

        Raises:
            UserError: a sample has the mask token.
        """
        found_BL = (batch.ids_BL == self.mask_token_id) & batch.valid_BL
        if bool(found_BL.any()):
            row, at = found_BL.nonzero()[0].tolist()
            raise UserError(
                f"sample {int(batch.sample_B[row])} has the mask token {self.mask_token_id} at position {at}: take it "
                "out of the data, or give the token that stands for masks alone."
            )
        masked_BL = torch.zeros_like(batch.valid_BL)
        probability_BL = torch.ones(batch.valid_BL.shape, dtype=torch.float64)
        for row, (sample, length) in enumerate(batch.samples()):
            time_L = self._times(batch.position_BL[row, :length], batch.document_BL[row, :length], seed, sample)
            # Never so small that its inverse, the weight of a loss, is without bound.
            p_L = probability_BL[row, :length] = (1 - self.eps) * time_L + self.eps
            rng = generator("mask", seed, sample)
            masked_BL[row, :length] = torch.rand(length, generator=rng, dtype=torch.float64) < p_L
        return masked_BL & batch.loss_mask_BL & batch.valid_BL, probability_BL

    def _times(self, position_L: Tensor, document_L: Tensor, seed: int, sample: int) -> Tensor:
        """The time of each token of a sample, `[length]`: one for all."""
        return self.times.draw(seed, sample).expand(len(position_L))
