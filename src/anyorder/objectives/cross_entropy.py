"""Cross entropy of many rows over a large vocabulary, without a wide copy of the scores.

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Rows that are turned to float32 at a time."""


def weighted_cross_entropy(logits_NV: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """`sum over rows of weight x -log softmax(logits)[target]`, computed in float32 at least.

    Where PyTorch's own keeps the logarithms of all probabilities for the backward pass, in float32, this keeps one
    number per row beside the logits.

    Args:
        logits_NV: scores, of any floating type.
        target_N: int64, the right token of each row.
        weight_N: what its loss counts; gets no gradient.
    """
    loss: Tensor = _WeightedCrossEntropy.apply(logits_NV, target_N, weight_N)
    return loss


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        log_total_N = torch.cat([chunk.to(wide).logsumexp(-1) for chunk in logits_NV.split(CHUNK)])
        own_N = logits_NV.gather(1, target_N.unsqueeze(1)).squeeze(1)
        weight_N = weight_N.to(wide)
        ctx.save_for_backward(logits_NV, target_N, weight_N, log_total_N)
        return (weight_N * (log_total_N - own_N)).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, target_N, weight_N, log_total_N = ctx.saved_tensors
        scale_N1 = (weight_N * grads[0]).unsqueeze(1)
        grad_NV = torch.empty_like(logits_NV)
        parts = zip(*(x.split(CHUNK) for x in (grad_NV, logits_NV, target_N, log_total_N, scale_N1)), strict=True)
        for grad, logits, target, log_total, scale in parts:
            probs = (logits - log_total.unsqueeze(1)).exp_()
            probs.scatter_add_(1, target.unsqueeze(1), torch.full_like(probs[:, :1], -1))
            grad.copy_(probs.mul_(scale))
        return grad_NV, None, None
