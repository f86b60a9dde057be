"""Ensembles: each phrasing is asked alone, and the scores of the next token are made one before a token is chosen.

All phrasings then go on with that token. They are rows of one batch, and read their prefix once.

Shape suffixes: N phrasings of a question, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anyorder.decoding.fusion.reader import Reader

CONTRAST = 0.25
"""How strongly "contrast" moves away from what is answered without any phrasing."""

Pool = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities `[N, V]` and weights `[N, 1]` that add up to 1 to scores `[V]`."""


def logit_mean(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """The mean of logits. That of log-probabilities differs from it by one number for all tokens: the same."""
    return (weight_N1 * log_probs_NV).sum(0)


def probability_mean(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """The mean of probabilities."""
    return (weight_N1.log() + log_probs_NV).logsumexp(0)


def highest(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """For each token the probability of the phrasing that is surest of it."""
    return log_probs_NV.amax(0)


def lowest_entropy(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """The distribution of the phrasing that is surest of all."""
    return log_probs_NV[entropy(log_probs_NV).argmin()]


def entropy(log_probs_NV: Tensor) -> Tensor:
    """Of each distribution, in nats, `[N]`."""
    return -(log_probs_NV.exp() * log_probs_NV).nan_to_num(0.0).sum(-1)


def contrast(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """Naive Bayes context extension (Su 2023): the surest phrasing, away from the answer without one.

    The last row is the distribution without any phrasing.
    """
    surest_V = lowest_entropy(log_probs_NV[:-1], weight_N1)
    return (1 + CONTRAST) * surest_V - CONTRAST * log_probs_NV[-1]


POOLS: dict[str, Pool] = {
    "logit-mean": logit_mean,
    "probability-mean": probability_mean,
    "max": highest,
    "lowest-entropy": lowest_entropy,
    "contrast": contrast,
}
"""By the name of the method."""

WEIGHED = ("logit-mean", "probability-mean")
"""Those in which weights count."""


class PooledReader(Reader):
    """One distribution of several rows.

    Args:
        reader: scores every phrasing; those of a question stand next to each other.
        counts: rows of each question.
        weights: of the phrasings of each question, adding up to 1.
        pool: how they are made one.
    """

    def __init__(self, reader: Reader, counts: Sequence[int], weights: Sequence[Sequence[float]], pool: Pool) -> None:
        self.reader = reader
        self.counts = list(counts)
        self.weights = list(weights)
        self.pool = pool

    @property
    def passes(self) -> int:
        return self.reader.passes

    def first(self) -> Tensor:
        return self._pooled(self.reader.first())

    def next(self, tokens: Sequence[int | None]) -> Tensor:
        of_rows = [token for token, count in zip(tokens, self.counts, strict=True) for _ in range(count)]
        return self._pooled(self.reader.next(of_rows))

    def _pooled(self, logits_RV: Tensor) -> Tensor:
        log_probs_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)).log_softmax(-1)
        return torch.stack(
            [
                self.pool(log_probs_NV, log_probs_NV.new_tensor(shares).unsqueeze(1))
                for log_probs_NV, shares in zip(log_probs_RV.split(self.counts), self.weights, strict=True)
            ]
        )

    def select(self, questions: Sequence[int]) -> None:
        blocks = self._blocks()
        self.reader.select([row for question in questions for row in blocks[question]])
        self.counts = [self.counts[question] for question in questions]
        self.weights = [self.weights[question] for question in questions]

    def reorder(self, parents: Sequence[int]) -> None:
        blocks = self._blocks()
        self.reader.reorder([row for parent in parents for row in blocks[parent]])

    def _blocks(self) -> list[range]:
        ends = list(itertools.accumulate(self.counts))
        return [range(end - count, end) for end, count in zip(ends, self.counts, strict=True)]


class HybridReader(Reader):
    """The mean of the log-probabilities of several readers: one more ensemble, whose members are methods."""

    def __init__(self, *readers: Reader) -> None:
        self.readers = readers

    @property
    def passes(self) -> int:
        return sum(reader.passes for reader in self.readers)

    def first(self) -> Tensor:
        return self._mean([reader.first() for reader in self.readers])

    def next(self, tokens: Sequence[int | None]) -> Tensor:
        return self._mean([reader.next(tokens) for reader in self.readers])

    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        wide = torch.promote_types(logits[0].dtype, torch.float32)
        return torch.stack([one.to(wide).log_softmax(-1) for one in logits]).mean(0)

    def select(self, questions: Sequence[int]) -> None:
        for reader in self.readers:
            reader.select(questions)

    def reorder(self, parents: Sequence[int]) -> None:
        for reader in self.readers:
            reader.reorder(parents)
