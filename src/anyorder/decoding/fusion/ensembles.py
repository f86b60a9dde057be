"""Ensembles: each phrasing is a text of its own, and one token is chosen from the distributions of all of them.

All phrasings then go on with that token. They are rows of one batch, and read their prefix once.

Shape suffixes: N phrasings of a question, M members of all questions, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from anyorder.decoding.left_to_right.reader import BeamReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Queries
from anyorder.utils.ragged import log_softmax

CONTRAST = 0.25
"""How strongly "contrast" moves away from the answer without any phrasing."""

Pool = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities `[N, V]` and weights `[N, 1]` that add up to 1 to scores `[V]`."""


def logit_mean(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """The mean of logits: that of log-probabilities, which differs from it by one number for all tokens."""
    return (weight_N1 * log_probs_NV).sum(0)


def probability_mean(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """The mean of probabilities."""
    return (weight_N1.log() + log_probs_NV).logsumexp(0)


def highest(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """The highest probability of each token."""
    return log_probs_NV.amax(0)


def lowest_entropy(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """The distribution of the lowest entropy."""
    entropy_N = -(log_probs_NV.exp() * log_probs_NV).nan_to_num(0.0).sum(-1)
    return log_probs_NV[entropy_N.argmin()]


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
"""Those that take weights into account."""


def pooled(pool: Pool, log_probs_NV: Tensor, weights: Sequence[float]) -> Tensor:
    """The scores `[V]` that a pool makes of log-probabilities and weights."""
    return pool(log_probs_NV, log_probs_NV.new_tensor(weights).unsqueeze(1))


class PooledReader(BeamReader):
    """One distribution of several members for each text.

    Args:
        reader: of all members, those of a text next to each other.
        members: of each text; they go on with the tokens of the text.
        weights: of the members of each text, adding up to 1.
        pool: combines the distributions of the members.
    """

    def __init__(
        self,
        reader: BeamReader,
        members: Mapping[CausalText, Sequence[CausalText]],
        weights: Sequence[Sequence[float]],
        pool: Pool,
    ) -> None:
        self.reader = reader
        self.members = members
        self.weights = dict(zip(members, weights, strict=True))
        self.pool = pool

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self.reader.passes

    def logits(self, queries: Queries[CausalText]) -> Tensor:
        """Combine the distributions of the members: scores `[texts of the pass, vocabulary]`."""
        for text in queries:
            for member in self.members[text]:
                member.tokens[member.first :] = text.tokens[text.first :]
        asked = [member for text in queries for member in self.members[text]]
        log_probs_MV = log_softmax(self.reader.logits({member: member.queries() for member in asked}))
        of_texts = log_probs_MV.split([len(self.members[text]) for text in queries])
        return torch.stack(
            [
                pooled(self.pool, log_probs_NV, self.weights[text])
                for text, log_probs_NV in zip(queries, of_texts, strict=True)
            ]
        )

    def reorder(self, parents: Sequence[int]) -> None:
        """Let each text go on from the keys of the text with this index."""
        number = itertools.count()
        rows = [[next(number) for _ in members] for members in self.members.values()]
        self.reader.reorder([row for parent in parents for row in rows[parent]])


class HybridReader(BeamReader):
    """The mean of the log-probabilities of several readers of the same texts."""

    def __init__(self, *readers: BeamReader) -> None:
        self.readers = readers

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return sum(reader.passes for reader in self.readers)

    def logits(self, queries: Queries[CausalText]) -> Tensor:
        """The mean, `[texts of the pass, vocabulary]`."""
        return torch.stack([log_softmax(reader.logits(queries)) for reader in self.readers]).mean(0)

    def reorder(self, parents: Sequence[int]) -> None:
        """Let each text go on from the keys of the text with this index."""
        for reader in self.readers:
            reader.reorder(parents)
