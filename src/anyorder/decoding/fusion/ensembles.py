"""Ensembles: each phrasing is a text of its own, a row of one batch that reads its prefix once.

Pools choose one token from the distributions of all members, which then go on with that token. In a vote, members
write whole answers, and one of them is elected.

Shape suffixes: N phrasings of a question, M members of all questions, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.left_to_right.reader import BeamReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Queries
from anyorder.decoding.trace import Step, StopReason, Written
from anyorder.utils.ragged import log_softmax

CONTRAST = 0.25
"""How strongly "contrast" moves away from the answer without any phrasing."""

Pool = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities `[N, V]` and weights `[N, 1]` that add up to 1 to scores `[V]`."""


def logit_mean(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """Return the mean of logits: that of log-probabilities, which differs from it by one number for all tokens."""
    return (weight_N1 * log_probs_NV).sum(0)


def probability_mean(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """Return the logarithm of the mean of probabilities."""
    return (weight_N1.log() + log_probs_NV).logsumexp(0)


def highest(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """Return the highest log-probability of each token."""
    return log_probs_NV.amax(0)


def lowest_entropy(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """Return the distribution of the lowest entropy."""
    entropy_N = -(log_probs_NV.exp() * log_probs_NV).nan_to_num(0.0).sum(-1)
    return log_probs_NV[entropy_N.argmin()]


def contrast(log_probs_NV: Tensor, weight_N1: Tensor) -> Tensor:
    """Return the surest distribution, moved away from the last one, which is without any phrasing.

    This is naive Bayes context extension (Su 2023).
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
"""Pools by the name of the method."""

MEMBER = 2**32
"""Member i of a vote on question q draws as sample q + i * MEMBER; the first one as the question."""

WEIGHED = ("logit-mean", "probability-mean")
"""Pools that take weights into account."""


def pooled(pool: Pool, log_probs_NV: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the scores `[V]` that a pool makes of log-probabilities and weights."""
    return pool(log_probs_NV, log_probs_NV.new_tensor(weights).unsqueeze(1))


@dataclass
class PooledReader(BeamReader):
    """One distribution of several members for each text.

    Attributes:
        reader: of all members, those of a text next to each other.
        members: of each text; they go on with the tokens of the text.
        questions: of each text, with the weights of its members.
        pool: combines the distributions of the members.
    """

    reader: BeamReader
    members: Mapping[CausalText, Collection[CausalText]]
    questions: Mapping[CausalText, Question]
    pool: Pool

    def logits(self, queries: Queries[CausalText]) -> Tensor:
        """Combine the distributions of the members: scores `[texts of the pass, vocabulary]`."""
        for text in queries:
            for member in self.members[text]:
                member.tokens[member.first :] = text.tokens[text.first :]
        members = {member: member.queries() for text in queries for member in self.members[text]}
        of_texts = log_softmax(self.reader.logits(members)).split([len(self.members[text]) for text in queries])
        self.passes = self.reader.passes
        scores = [
            pooled(self.pool, log_probs_NV, self.questions[text].shares)
            for text, log_probs_NV in zip(queries, of_texts, strict=True)
        ]
        return torch.stack(scores)

    def reorder(self, parents: Sequence[int]) -> None:
        """Reorder the members of each text; see `BeamReader.reorder`."""
        row = itertools.count()
        rows_of = [[next(row) for _ in members] for members in self.members.values()]
        self.reader.reorder([row for parent in parents for row in rows_of[parent]])


class HybridReader(BeamReader):
    """The mean of the log-probabilities of several readers of the same texts."""

    def __init__(self, *readers: BeamReader) -> None:
        self.readers = readers

    def logits(self, queries: Queries[CausalText]) -> Tensor:
        """Return the mean of log-probabilities, `[texts of the pass, vocabulary]`."""
        log_probs_ENV = torch.stack([log_softmax(reader.logits(queries)) for reader in self.readers])
        self.passes = sum(reader.passes for reader in self.readers)
        return log_probs_ENV.mean(0)

    def reorder(self, parents: Sequence[int]) -> None:
        """Reorder the texts of each reader; see `BeamReader.reorder`."""
        for reader in self.readers:
            reader.reorder(parents)


# ---- votes ---------------------------------------------------------------------------------------------------------


def members_of(questions: Sequence[Question], sample_ids: Sequence[int]) -> dict[int, Question]:
    """Return each phrasing as a question of its own, by its sample id; see `MEMBER`."""
    return {
        sample_id + index * MEMBER: member
        for sample_id, question in zip(sample_ids, questions, strict=True)
        for index, member in enumerate(question.members())
    }


def elect(
    steps: Iterable[Step],
    questions: Sequence[Question],
    sample_ids: Sequence[int],
    same_answer: Callable[[Sequence[int]], Hashable],
) -> Iterator[Step]:
    """Yield one step, with the answer of each question whose members have the most weight; of equals the likeliest one.

    Args:
        steps: those that write the answers to `members_of` the questions.
        questions, sample_ids, same_answer: as in `fusion_steps`.
    """
    taken = list(steps)
    events: dict[int, list[Written]] = defaultdict(list)
    for event in itertools.chain.from_iterable(step.written for step in taken):
        events[event.sample_id].append(event)
    reasons = {number: why for step in taken for number, why in step.stopped.items()}
    log_prob = {number: sum(event.log_prob for event in answer) for number, answer in events.items()}
    found: list[Written] = []
    stopped: dict[int, StopReason] = {}
    for sample_id, question in zip(sample_ids, questions, strict=True):
        numbers = members_of([question], [sample_id])
        answer_of = {number: same_answer([event.token_id for event in events[number]]) for number in numbers}
        votes: dict[Hashable, float] = defaultdict(float)
        for number, share in zip(numbers, question.shares, strict=True):
            votes[answer_of[number]] += share
        most = max(votes.values()) * (1 - 1e-9)
        best = max(numbers, key=lambda number: (votes[answer_of[number]] >= most, log_prob[number]))
        start = question.layout("shared").length
        found += [event._replace(sample_id=sample_id, position=start + event.step) for event in events[best]]
        stopped[sample_id] = reasons[best]
    yield Step(tuple(sorted(found)), stopped, sum(step.passes for step in taken))
