"""Attention in which some of the keys have a softmax of their own, merged with that of the others.

Scores of these keys are divided by a temperature, and the logarithm of the sum of their exponentials, their weight
against all other keys, is multiplied by a scale (APE, Yang et al. 2025, arXiv 2502.05431). No bias can express the
second, so the keys are attended to in two calls of the reference, merged by their log-sum-exp.

Shape suffixes: B batch, Q query rows, K keys, H heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anyorder.attention.backends import EagerMask
from anyorder.attention.mask import AttentionMask, Request, Tempered


@dataclass(frozen=True, kw_only=True)
class TemperedMask(AttentionMask):
    """A mask in two parts: the keys outside of the relation, and those within, whose scores are tempered."""

    others: EagerMask
    part: EagerMask
    tempered: Tempered

    @classmethod
    def of(cls, request: Request, tempered: Tempered) -> TemperedMask:
        """Compile a request."""
        rule = request.visibility
        others = EagerMask.of(replace(request, visibility=rule & ~tempered.relation))
        part = EagerMask.of(replace(request, visibility=rule & tempered.relation))
        return cls(others=others, part=part, tempered=tempered)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        """Each part by its own softmax, weighed by its log-sum-exp; zeros for a row without a visible key."""
        outs, weights = [], []
        for mask, temperature, factor in (
            (self.others, 1.0, 1.0), (self.part, self.tempered.temperature, self.tempered.scale)
        ):  # fmt: skip
            out_BQHD, lse_BQH = mask.attend_with_lse(q_BQHD, k_BKGD, v_BKGD, scale / temperature)
            if mask.empty_BQ is not None:
                lse_BQH = lse_BQH.masked_fill(mask.empty_BQ.unsqueeze(2), -torch.inf)
            outs.append(out_BQHD)
            weights.append(lse_BQH * factor)
        lse_2BQH = torch.stack(weights)
        highest_BQH = lse_2BQH.amax(0)
        share_2BQH = (lse_2BQH - highest_BQH.masked_fill(highest_BQH == -torch.inf, 0.0)).exp()
        share_2BQH = share_2BQH / share_2BQH.sum(0).clamp(min=torch.finfo(share_2BQH.dtype).tiny)
        return (torch.stack(outs) * share_2BQH.unsqueeze(-1).to(q_BQHD.dtype)).sum(0)
