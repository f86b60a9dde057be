"""Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightlessRMSNorm(nn.Module):
    """`x / sqrt(mean(x ** 2) + eps)` over the last dimension, computed in float32 or wider."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.nn.functional.rms_norm(wide, wide.shape[-1:], eps=self.eps).to(x.dtype)


class RMSNorm(WeightlessRMSNorm):
    """The same times a learned `weight`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(eps)
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * super().forward(x)
