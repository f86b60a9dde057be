"""Attention in which some of the keys have a softmax of their own, merged with that of the others.

Scores of these keys are divided by a temperature, and the logarithm of the sum of their exponentials, their weight
against all other keys, is multiplied by a scale (APE, Yang et al. 2025, arXiv 2502.05431). No bias can express the
second, so the keys are attended to in two calls, merged by their log-sum-exp.

Shape suffixes: B batch, Q query rows, H heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.visibility import Visibility

if TYPE_CHECKING:
    from anyorder.attention.mask import AttentionMask, Request


@dataclass(frozen=True)
class Tempered:
    """Pairs of rows and keys whose scores are tempered; 1 and 1 change nothing.

    Attributes:
        relation: the pairs.
        temperature: their scores are divided by it.
        scale: factor of the logarithm of the sum of their exponentials.

    Raises:
        UserError: a number is not above 0.
    """

    relation: Visibility
    temperature: float
    scale: float

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("scale", self.scale)):
            if not (0 < value < math.inf):
                raise UserError(f"the {name} of {self.relation} is {value}: give a number above 0.")


@dataclass(frozen=True)
class TemperedMasks:
    """A mask in two parts, and how the scores of the second part are tempered."""

    others: AttentionMask
    part: AttentionMask
    temperature: float
    scale: float


AttendWithLse = Callable[[Tensor, Tensor, Tensor, "AttentionMask", float], tuple[Tensor, Tensor]]
"""Queries, keys, values, mask and scale of scores to output and log-sum-exp `[batch, rows, heads]`."""


def split(request: Request, tempered: Tempered) -> tuple[Request, Request]:
    """A request for the keys outside of the relation, and one for those within."""
    rule = request.visibility
    return (
        replace(request, visibility=rule & ~tempered.relation, tempered=None),
        replace(request, visibility=rule & tempered.relation, tempered=None),
    )


def attend_in_parts(
    attend: AttendWithLse, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, masks: TemperedMasks, scale: float
) -> Tensor:
    """Each part by its own softmax, weighed by its log-sum-exp; zeros for a row that sees nothing."""
    outs, weights = [], []
    for mask, temperature, factor in ((masks.others, 1.0, 1.0), (masks.part, masks.temperature, masks.scale)):
        out_BQHD, lse_BQH = attend(q_BQHD, k_BKGD, v_BKGD, mask, scale / temperature)
        if mask.empty_BQ is not None:
            lse_BQH = lse_BQH.masked_fill(mask.empty_BQ.unsqueeze(2), -torch.inf)
        outs.append(out_BQHD)
        weights.append(lse_BQH * factor)
    lse_2BQH = torch.stack(weights)
    highest_BQH = lse_2BQH.amax(0)
    share_2BQH = (lse_2BQH - highest_BQH.masked_fill(highest_BQH == -torch.inf, 0.0)).exp()
    share_2BQH = share_2BQH / share_2BQH.sum(0).clamp(min=torch.finfo(share_2BQH.dtype).tiny)
    return (torch.stack(outs) * share_2BQH.unsqueeze(-1).to(q_BQHD.dtype)).sum(0)
