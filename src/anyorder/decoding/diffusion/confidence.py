"""A token for each candidate, and a confidence that ranks the candidates.

Shapes: N candidates (positions of all texts, text after text), V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from anyorder.decoding.diffusion.text import CanvasText
from anyorder.decoding.loop import Choices, Queries
from anyorder.decoding.sampling import Sampling
from anyorder.utils.ragged import log_probs_of

TINY = 1e-10  # keeps the logarithm of probability 0 finite, as Dream does


# ---- confidence ----------------------------------------------------------------------------------------------------


class Candidates(NamedTuple):
    """What a confidence is computed from.

    Attributes:
        logits: `[N, V]`; after temperature, top-p and top-k where confidence is tempered.
        token_ids: the token chosen for each candidate, `[N]`.
        texts: the text of each candidate.
        positions: the position of each candidate.
    """

    logits: Tensor
    token_ids: Tensor
    texts: Sequence[CanvasText]
    positions: Sequence[int]

    @property
    def probabilities(self) -> Tensor:
        """Probabilities `[N, V]`, in the dtype of the logits, as published."""
        return self.logits.softmax(-1)


Confidence = Callable[[Candidates], Tensor]
"""The confidence of each candidate, `[N]`, the highest first; `[N, K]` for a commit rule that reads several numbers.

One that draws random numbers has an attribute `draws = True`: see `is_random`.
"""


def is_random(confidence: Confidence) -> bool:
    """Whether a confidence draws random numbers, so that what is written depends on the seed."""
    return bool(getattr(confidence, "draws", False))


def probability(candidates: Candidates) -> Tensor:
    """Return the probability of the token."""
    return candidates.probabilities.gather(-1, candidates.token_ids.unsqueeze(1)).squeeze(1)


def margin(candidates: Candidates) -> Tensor:
    """Return the difference between the two highest probabilities."""
    best_N2 = candidates.probabilities.topk(2, dim=-1).values
    return best_N2[:, 0] - best_N2[:, 1]


def negative_entropy(candidates: Candidates) -> Tensor:
    """Return the negative entropy of the distribution, in nats."""
    probabilities_NV = candidates.probabilities
    return (probabilities_NV * (probabilities_NV + TINY).log()).sum(-1)


class Uniform:
    """A random number from 0 to 1, from the generator of the text."""

    draws = True

    def __call__(self, candidates: Candidates) -> Tensor:
        drawn = [torch.rand(1, dtype=torch.float64, generator=row.rng) for row in candidates.texts]
        return torch.cat(drawn).to(candidates.token_ids.device)


ConfidenceName = Literal["probability", "random", "margin", "entropy"]

CONFIDENCES: dict[str, Confidence] = {
    "probability": probability,
    "random": Uniform(),
    "margin": margin,
    "entropy": negative_entropy,
}
"""By the name in `DiffusionSampler.confidence`, which takes a function as well."""


# ---- tokens --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokenChooser:
    """Choose a token and a confidence for each candidate.

    Attributes:
        mask_token_id: never chosen unless `may_choose_mask`; it counts in confidence, though, as in published code.
        end_token_ids: the tokens that `suppress_end` suppresses.
        confidence: a function of `CONFIDENCES`, or another one.
        temperature, top_k, top_p, tempered_confidence, suppress_end, min_new_tokens, may_choose_mask: see
            `DiffusionSampler`.
    """

    mask_token_id: int
    end_token_ids: Sequence[int]
    confidence: Confidence = probability
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    tempered_confidence: bool = False
    suppress_end: Literal["no", "choice", "confidence"] = "no"
    min_new_tokens: int = 0
    may_choose_mask: bool = False

    def __call__(self, logits_NV: Tensor, queries: Queries[CanvasText]) -> Choices:
        """Choose for each query; changes the logits in place."""
        texts = [text for text, positions in queries.items() for _ in positions]
        positions = [position for of_text in queries.values() for position in of_text]
        ends = torch.tensor(self.end_token_ids, dtype=torch.int64, device=logits_NV.device)
        if self.suppress_end == "choice":
            logits_NV[:, ends] = -torch.inf
        elif self.min_new_tokens:
            written = [text.given[:at].count(False) for text, at in zip(texts, positions, strict=True)]
            early_N1 = torch.tensor(written, device=logits_NV.device).unsqueeze(1) < self.min_new_tokens
            logits_NV[:, ends] = logits_NV[:, ends].masked_fill(early_N1, -torch.inf)
        token_ids, log_probs = self._tokens(logits_NV, [text.rng for text in texts])

        judged_NV = self.filtered(logits_NV) if self.tempered_confidence else logits_NV
        # Random order ignores the suppression, as published.
        suppresses = self.suppress_end == "confidence" and not is_random(self.confidence)
        if suppresses:
            judged_NV = judged_NV.index_fill(1, ends, -torch.inf)
        confidence = self.confidence(Candidates(judged_NV, token_ids, texts, positions))
        if suppresses:
            confidence[torch.isin(token_ids, ends)] = -torch.inf
        return Choices(token_ids, log_probs, confidence)

    def _tokens(self, logits_NV: Tensor, rngs: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return token ids and log-probabilities, each `[N]`."""
        if not self.may_choose_mask:
            mask = torch.tensor([self.mask_token_id], device=logits_NV.device)
            logits_NV = logits_NV.index_fill(1, mask, -torch.inf)
        if self.temperature > 0:
            return Sampling(temperature=1.0).choose(self.filtered(logits_NV), rngs)
        token_ids = logits_NV.argmax(-1)
        return token_ids, log_probs_of(logits_NV, token_ids)

    def filtered(self, logits_NV: Tensor) -> Tensor:
        """Return logits after temperature (in float64), top-p and top-k, in this order, which is Dream's."""
        scores_NV = logits_NV.double() / self.temperature if self.temperature > 0 else logits_NV
        if self.top_p is not None and self.top_p < 1:
            scores_NV = TopPLogitsWarper(self.top_p)(None, scores_NV)  # type: ignore[arg-type]  # it reads no ids
        if self.top_k is not None:
            scores_NV = TopKLogitsWarper(self.top_k)(None, scores_NV)  # type: ignore[arg-type]
        return scores_NV
