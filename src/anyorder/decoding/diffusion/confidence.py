"""A token for each candidate, and a number that ranks the candidates: how sure the network is of each.

Shapes: N candidates (positions of all rows, row after row), V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from anyorder.decoding.checks import not_numbers
from anyorder.decoding.sampling import Sampling

if TYPE_CHECKING:
    from anyorder.decoding.diffusion.decoder import DiffusionSampler

Confidence = Literal["probability", "random", "margin", "entropy"]

TINY = 1e-10  # keeps the logarithm of probability 0 finite, as Dream does


class Choices(NamedTuple):
    """What would be written at each candidate, each `[N]`.

    Attributes:
        token: ids.
        log_prob: natural logarithm of the probability that the token was chosen by.
        confidence: the higher, the earlier it is written.
    """

    token: Tensor
    log_prob: Tensor
    confidence: Tensor


def choose(
    logits_NV: Tensor,
    sampler: DiffusionSampler,
    *,
    mask_token_id: int,
    end_token_ids: Sequence[int],
    early: Sequence[bool],
    generators: Sequence[torch.Generator],
) -> Choices:
    """A token and a confidence for each candidate.

    Args:
        logits_NV: the network's scores; changed here.
        sampler: all that it says of tokens and of confidence counts here.
        mask_token_id: not chosen unless the sampler lets it be; it counts in confidence, though, as in published code.
        end_token_ids: what `suppress_end` suppresses.
        early: candidates where no end token may be chosen.
        generators: that of the row of each candidate; asked for one number where a token is drawn, and for one where
            confidence is.

    Raises:
        UserError: scores are not numbers.
    """
    ends = torch.tensor(end_token_ids, dtype=torch.int64, device=logits_NV.device)
    closed = [True] * len(early) if sampler.suppress_end == "choice" else early
    closed_N1 = torch.tensor(closed, dtype=torch.bool, device=logits_NV.device).unsqueeze(1)
    logits_NV[:, ends] = logits_NV[:, ends].masked_fill(closed_N1, -torch.inf)
    eligible_NV = logits_NV
    if not sampler.may_choose_mask:
        eligible_NV = logits_NV.index_fill(1, torch.tensor([mask_token_id], device=logits_NV.device), -torch.inf)
    if sampler.temperature > 0:
        token_N, log_prob_N = Sampling(temperature=1.0).choose(filtered(eligible_NV, sampler), generators)
    else:
        token_N = eligible_NV.argmax(-1)
        wide_NV = eligible_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        log_prob_N = _at(wide_NV.log_softmax(-1), token_N)
    if bool(log_prob_N.isnan().any()):
        raise not_numbers()
    if sampler.confidence == "random":
        drawn = [torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators]
        return Choices(token_N, log_prob_N, torch.cat(drawn).to(token_N.device))
    judged_NV = filtered(logits_NV, sampler) if sampler.tempered_confidence else logits_NV
    if sampler.suppress_end != "confidence":
        return Choices(token_N, log_prob_N, _confidence(judged_NV, token_N, sampler.confidence))
    confidence_N = _confidence(judged_NV.index_fill(1, ends, -torch.inf), token_N, sampler.confidence)
    return Choices(token_N, log_prob_N, confidence_N.masked_fill(torch.isin(token_N, ends), -torch.inf))


def filtered(logits_NV: Tensor, sampler: DiffusionSampler) -> Tensor:
    """Scores after temperature (in float64), top-p and top-k, in this order, which is Dream's."""
    scores_NV = logits_NV.double() / sampler.temperature if sampler.temperature > 0 else logits_NV
    if sampler.top_p is not None and sampler.top_p < 1:
        scores_NV = TopPLogitsWarper(sampler.top_p)(None, scores_NV)  # type: ignore[arg-type]  # it reads no ids
    if sampler.top_k is not None:
        scores_NV = TopKLogitsWarper(sampler.top_k)(None, scores_NV)  # type: ignore[arg-type]
    return scores_NV


def _confidence(scores_NV: Tensor, token_N: Tensor, kind: Confidence) -> Tensor:
    probability_NV = scores_NV.softmax(-1)  # in the dtype of the scores, as published
    if kind == "probability":
        return _at(probability_NV, token_N)
    if kind == "margin":
        best_N2 = probability_NV.topk(2, dim=-1).values
        return best_N2[:, 0] - best_N2[:, 1]
    return (probability_NV * (probability_NV + TINY).log()).sum(-1)


def _at(scores_NV: Tensor, token_N: Tensor) -> Tensor:
    return scores_NV.gather(-1, token_N.unsqueeze(1))[:, 0]
