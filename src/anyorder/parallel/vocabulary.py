"""The loss of a network whose scores are split by tokens over processes, without gathering them.

Each process has the scores of its own tokens. A logarithm of a sum of exponentials takes two collectives of one number
a row, a score of one token another (Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053, section 3); PyTorch's
`DTensor.logsumexp` would gather all scores.

Shape suffixes: N rows, V tokens of the whole vocabulary, O tokens of this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from anyorder.objectives import TrainingInputs, predictions
from anyorder.objectives.cross_entropy import weighted_cross_entropy
from anyorder.parallel.apply import part_of

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def summed_loss(model: Llama, inputs: TrainingInputs) -> Tensor:
    """Sum weighted cross-entropies in nats, as `objectives.summed_loss` does, where logits may be split by tokens."""
    logits_NV = predictions(model, inputs)
    if not isinstance(logits_NV, DTensor):
        return weighted_cross_entropy(logits_NV, inputs.target_N, inputs.weight_N)
    loss: Tensor = _SplitCrossEntropy.apply(
        logits_NV.to_local(), inputs.target_N, inputs.weight_N, logits_NV.shape[1], logits_NV.device_mesh
    )
    return loss


class _SplitCrossEntropy(torch.autograd.Function):
    """`weighted_cross_entropy` of the scores `[N, O]` of this process; the same loss in each process."""

    @staticmethod
    def forward(
        ctx: Any, own_NO: Tensor, target_N: Tensor, weight_N: Tensor, tokens: int, mesh: DeviceMesh
    ) -> Tensor:  # fmt: skip
        wide_NO = own_NO.to(torch.promote_types(own_NO.dtype, torch.float32))
        weight_N = weight_N.to(wide_NO.dtype)
        part = part_of(tokens, mesh)
        # A process may have no token, so that the highest score is that of another.
        padded_NO = torch.nn.functional.pad(wide_NO, (0, 1), value=-torch.inf)
        highest_N = _all_reduced(padded_NO.amax(-1), "max", mesh)
        total_N = _all_reduced((wide_NO - highest_N.unsqueeze(1)).exp().sum(-1), "sum", mesh)
        log_total_N = total_N.log() + highest_N
        place_N = target_N - part.start
        mine_N = (place_N >= 0) & (place_N < own_NO.shape[1])
        place_N = place_N.masked_fill(~mine_N, own_NO.shape[1])
        score_N = padded_NO.gather(1, place_N.unsqueeze(1)).squeeze(1).masked_fill(~mine_N, 0)
        score_N = _all_reduced(score_N, "sum", mesh)
        ctx.save_for_backward(own_NO, place_N, weight_N, log_total_N)
        return (weight_N * (log_total_N - score_N)).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        own_NO, place_N, weight_N, log_total_N = ctx.saved_tensors
        probs_NO = (own_NO.to(log_total_N.dtype) - log_total_N.unsqueeze(1)).exp()
        padded_NO = torch.nn.functional.pad(probs_NO, (0, 1))
        padded_NO.scatter_add_(1, place_N.unsqueeze(1), torch.full_like(padded_NO[:, :1], -1))
        grad_NO = padded_NO[:, :-1] * (weight_N * grads[0]).unsqueeze(1)
        return grad_NO.to(own_NO.dtype), None, None, None, None


def _all_reduced(value: Tensor, operation: str, mesh: DeviceMesh) -> Tensor:
    """Return the sum or maximum over the processes of a mesh."""
    return collectives.wait_tensor(collectives.all_reduce(value, operation, mesh))
