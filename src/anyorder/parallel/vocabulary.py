"""Scores that are split by tokens over processes: loss, log-probabilities, entropy, best tokens and draws of them.

Each process has the scores of its own tokens, and they are never gathered. A logarithm of a sum of exponentials takes
two collectives of one number a row, a score of one token another (Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053,
section 3); PyTorch's `DTensor.logsumexp` would gather all scores. Each function takes whole scores as well, and then
computes the same in one process.

Shape suffixes: N rows, V tokens of the whole vocabulary, O tokens of this process, K best tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from anyorder.objectives import TrainingInputs, predictions
from anyorder.objectives.cross_entropy import weighted_cross_entropy
from anyorder.parallel.apply import part_of
from anyorder.utils.rng import WORDS, hashed

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


@dataclass(frozen=True)
class _Scores:
    """The scores of the tokens of this process.

    Attributes:
        own_NO: in float32 at least.
        first: the number of the first of these tokens.
        mesh: the processes; None: this one has all tokens.
    """

    own_NO: Tensor
    first: int
    mesh: DeviceMesh | None

    @classmethod
    def of(cls, logits_NV: Tensor) -> _Scores:
        """Take scores that are whole or split."""
        if not isinstance(logits_NV, DTensor):
            return cls(_wide(logits_NV), 0, None)
        mesh = logits_NV.device_mesh
        return cls(_wide(logits_NV.to_local()), part_of(logits_NV.shape[1], mesh).start, mesh)

    def reduced(self, value: Tensor, operation: str) -> Tensor:
        """Return the sum, maximum or minimum over the processes."""
        if self.mesh is None:
            return value
        return collectives.wait_tensor(collectives.all_reduce(value, operation, self.mesh))

    def highest(self) -> Tensor:
        """Return the highest score of each row, `[N]`."""
        padded_NO = F.pad(self.own_NO, (0, 1), value=-torch.inf)  # a process may have no token
        return self.reduced(padded_NO.amax(-1), "max")

    def log_total(self) -> Tensor:
        """Return the logarithm of the sum of exponentials of each row, `[N]`."""
        highest_N = self.highest()
        return self.reduced((self.own_NO - highest_N.unsqueeze(1)).exp().sum(-1), "sum").log() + highest_N

    def place(self, token_N: Tensor) -> Tensor:
        """Return the column of each token here, `[N]`; one more than there are where another process has it."""
        place_N = token_N - self.first
        here_N = (place_N >= 0) & (place_N < self.own_NO.shape[1])
        return place_N.masked_fill(~here_N, self.own_NO.shape[1])

    def at(self, token_N: Tensor) -> Tensor:
        """Return the score of one token of each row, `[N]`."""
        found_N1 = F.pad(self.own_NO, (0, 1)).gather(1, self.place(token_N).unsqueeze(1))
        return self.reduced(found_N1.squeeze(1), "sum")


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# ---- loss -------------------------------------------------------------------------------------------


def summed_loss(model: Llama, inputs: TrainingInputs) -> Tensor:
    """Sum weighted cross-entropies in nats, as `objectives.summed_loss` does, where logits may be split by tokens."""
    logits_NV = predictions(model, inputs)
    if not isinstance(logits_NV, DTensor):
        return weighted_cross_entropy(logits_NV, inputs.target_N, inputs.weight_N)
    first = part_of(logits_NV.shape[1], logits_NV.device_mesh).start
    loss: Tensor = _SplitCrossEntropy.apply(
        logits_NV.to_local(), inputs.target_N, inputs.weight_N, first, logits_NV.device_mesh
    )
    return loss


class _SplitCrossEntropy(torch.autograd.Function):
    """`weighted_cross_entropy` of the scores `[N, O]` of this process; the same loss in each process."""

    @staticmethod
    def forward(
        ctx: Any, own_NO: Tensor, target_N: Tensor, weight_N: Tensor, first: int, mesh: DeviceMesh
    ) -> Tensor:  # fmt: skip
        scores = _Scores(_wide(own_NO), first, mesh)
        weight_N = weight_N.to(scores.own_NO.dtype)
        log_total_N = scores.log_total()
        ctx.save_for_backward(own_NO, scores.place(target_N), weight_N, log_total_N)
        return (weight_N * (log_total_N - scores.at(target_N))).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        own_NO, place_N, weight_N, log_total_N = ctx.saved_tensors
        probs_NO = (own_NO.to(log_total_N.dtype) - log_total_N.unsqueeze(1)).exp()
        padded_NO = F.pad(probs_NO, (0, 1))
        padded_NO.scatter_add_(1, place_N.unsqueeze(1), torch.full_like(padded_NO[:, :1], -1))
        grad_NO = padded_NO[:, :-1] * (weight_N * grads[0]).unsqueeze(1)
        return grad_NO.to(own_NO.dtype), None, None, None, None


# ---- reading scores without gradients ---------------------------------------------------------------


def log_probs(logits_NV: Tensor, token_N: Tensor) -> Tensor:
    """Return the log-probability of one token of each row in nats, `[N]`."""
    scores = _Scores.of(logits_NV)
    return scores.at(token_N) - scores.log_total()


def entropy(logits_NV: Tensor) -> Tensor:
    """Return the entropy of each row in nats, `[N]`."""
    scores = _Scores.of(logits_NV)
    log_total_N = scores.log_total()
    log_probs_NO = scores.own_NO - log_total_N.unsqueeze(1)
    return scores.reduced(torch.special.entr(log_probs_NO.exp()).sum(-1), "sum")


def top_k(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of each row and their tokens, both `[N, K]`, the highest first."""
    scores = _Scores.of(logits_NV)
    padded_NO = F.pad(scores.own_NO, (0, max(count - scores.own_NO.shape[1], 0)), value=-torch.inf)
    best_NK, token_NK = padded_NO.topk(count, dim=-1)
    token_NK = token_NK + scores.first
    if scores.mesh is not None:
        best_NK, token_NK = (
            collectives.wait_tensor(collectives.all_gather_tensor(each.contiguous(), 1, scores.mesh))
            for each in (best_NK, token_NK)
        )
        best_NK, place_NK = best_NK.topk(count, dim=-1)
        token_NK = token_NK.gather(1, place_NK)
    return best_NK, token_NK


def draw(
    logits_NV: Tensor, *, temperature: float, seed: int, sample_N: Tensor, position_N: Tensor
) -> Tensor:  # fmt: skip
    """Draw a token of each row, `[N]`: the highest score with Gumbel noise, which is distributed as a draw.

    The noise of a token follows from (seed, sample, position, token) alone, so that the draw is the same over any
    number of processes and in any batch. At temperature 0 the most probable token.

    Args:
        logits_NV: the scores.
        temperature: divides them.
        seed, sample_N, position_N: decide the noise.
    """
    scores = _Scores.of(logits_NV)
    noisy_NO = scores.own_NO.double()
    token_O = scores.first + torch.arange(noisy_NO.shape[1], device=noisy_NO.device)
    if temperature > 0:
        word_NO = hashed(sample_N.unsqueeze(1), seed, position_N.unsqueeze(1), token_O)
        uniform_NO = (word_NO.double() + 0.5) / WORDS
        noisy_NO = noisy_NO / temperature - (-uniform_NO.log()).log()
    noisy = _Scores(noisy_NO, scores.first, scores.mesh)
    is_highest_NO = noisy_NO == noisy.highest().unsqueeze(1)
    candidate_NO = token_O.expand_as(noisy_NO).masked_fill(~is_highest_NO, logits_NV.shape[1])
    return noisy.reduced(F.pad(candidate_NO, (0, 1), value=logits_NV.shape[1]).amin(-1), "min")
