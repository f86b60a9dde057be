"""Queries that grow with their position, so that attention over long texts stays sharp.

Shape suffixes: B batch, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.utils.annotations import AtMost, check_fields

Period = Annotated[int, AtMost(2**31 - 1)]
Real = Annotated[float, AtMost(1e15)]


@dataclass(frozen=True, kw_only=True)
class QueryScale:
    """Factor `1 + strength * log(1 + floor((position + offset) / period))` of a query (Llama 4, Ministral 3).

    Attributes:
        strength: 0.1 in Llama 4, whose field `attn_scale` it is.
        period: positions after which the factor grows first, `floor_scale` in Llama 4.
        offset: 1 in Llama 4, 0 in Ministral 3 and Nemotron-Labs-Diffusion.

    Raises:
        UserError: a field has a value that it cannot have.
    """

    strength: Real
    period: Period
    offset: Annotated[int, AtMost(1)] = 1

    def __post_init__(self) -> None:
        check_fields(self, "query scale field {!r}")
        for name, lowest in (("strength", 0), ("period", 1), ("offset", 0)):
            value = getattr(self, name)
            if value < lowest:
                raise UserError(f"query scale field {name!r} is {value}: give a number from {lowest} on.")

    def factor(self, position_BR: Tensor, dtype: torch.dtype) -> Tensor:
        """The factor of each row's queries, `[batch, rows, 1, 1]`."""
        periods_BR = (position_BR + self.offset).double().div(self.period).floor()
        return (1 + self.strength * periods_BR.log1p()).to(dtype)[..., None, None]
