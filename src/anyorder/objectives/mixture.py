"""Several objectives for one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.objectives.inputs import Batch, Objective, TrainingInputs
from anyorder.utils.annotations import check_fields
from anyorder.utils.rng import generator


@dataclass(frozen=True, kw_only=True)
class Mixture(Objective):
    """Each sample, or each step, has one of several objectives, with its own rows, visibility, shift and tokens.

    Attributes:
        parts: the objectives.
        shares: how often each is drawn, in proportion.
        by: "step" draws one for each optimizer step; "sample" one for each sample, and the loss is that of all their
            predictions together, divided by the sum of their counts.

    Raises:
        UserError: shares that are none, two objectives that train one mode with different conventions, or counts that
            cannot be added.
    """

    parts: Sequence[Objective]
    shares: Sequence[float]
    by: Literal["sample", "step"] = "sample"

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.parts) != len(self.shares) or not self.parts:
            raise UserError(f"there are {len(self.shares)} shares for {len(self.parts)} objectives: give one for each.")
        if min(self.shares) < 0 or not sum(self.shares) > 0:
            raise UserError(f"shares is {list(self.shares)}: give numbers that are not negative, one of them above 0.")
        if self.by not in ("sample", "step"):
            raise UserError(f"by is {self.by!r}: draw an objective by 'sample' or by 'step'.")
        if self.by == "sample" and len({part.unit for part in self.parts}) > 1:
            units = ", ".join(f"{type(part).__name__} by {part.unit}" for part in self.parts)
            raise UserError(f"the losses have different units ({units}): draw an objective by 'step'.")
        if len({mode.name for mode in self.modes}) < len(self.modes):
            raise UserError("two objectives teach the same mode with different conventions: give the same.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those of all objectives."""
        return tuple(dict.fromkeys(mode for part in self.parts for mode in part.modes))

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """One pass for all: a sample's objective changes nothing for those beside it."""
        if self.by == "step":
            return self.parts[self._drawn("step", seed, batch.step)].inputs(batch, seed)
        drawn = [self._drawn("sample", seed, sample) for sample in batch.sample_B.tolist()]
        members = [[row for row, part in enumerate(drawn) if part == number] for number in range(len(self.parts))]
        all_inputs = [
            part.inputs(batch.only(rows), seed) for part, rows in zip(self.parts, members, strict=True) if rows
        ]  # fmt: skip
        return TrainingInputs.join(all_inputs)

    def _drawn(self, kind: str, seed: int, number: int) -> int:
        total = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        u = torch.rand((), generator=generator("objective", kind, seed, number), dtype=torch.float64) * total[-1]
        return min(int(torch.searchsorted(total, u, right=True)), len(total) - 1)
