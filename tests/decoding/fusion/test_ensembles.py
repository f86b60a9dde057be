"""Ensembles equal what separate runs of each phrasing give, made one by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.decoding.fusion.ensembles import POOLS, WEIGHED
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import HYBRID, Fusion
from anyorder.decoding.sampling import Sampling
from anyorder.model.llama import Llama
from tests.decoding.fusion.test_decoder import net, questions
from tests.decoding.fusion.writing import write_fused
from tests.decoding.fusion_oracle import fused_logits, single_logits


def by_hand(model: Llama, method: str, question: Question, answer: Sequence[int]) -> list[float]:
    """Probability of each token, phrasing by phrasing and token by token."""

    def probabilities(segment: Sequence[int]) -> list[float]:
        one = single_logits(model, [*question.prefix, *segment, *question.suffix, *answer]).softmax(0).tolist()
        return [float(p) for p in one]

    members = [probabilities(segment) for segment in question.segments]
    weights = question.weights or (1.0,) * len(members)
    shares = [weight / sum(weights) for weight in weights]

    def entropy(member: list[float]) -> float:
        return -sum(p * math.log(p) for p in member if p > 0)

    scores = []
    for token in range(len(members[0])):
        here = [member[token] for member in members]
        if method == "logit-mean":
            scores.append(math.prod(p**share for p, share in zip(here, shares, strict=True)))
        elif method == "probability-mean":
            scores.append(sum(p * share for p, share in zip(here, shares, strict=True)))
        elif method == "max":
            scores.append(max(here))
        else:
            surest = min(members, key=entropy)[token]
            scores.append(surest if method == "lowest-entropy" else surest**1.25 / probabilities(())[token] ** 0.25)
    return [score / sum(scores) for score in scores]


@pytest.mark.parametrize("method", [*POOLS, HYBRID])
@settings(max_examples=6, deadline=None)
@given(asked=st.lists(questions, min_size=1, max_size=2), weighed=st.booleans())
def test_equals_separate_runs(method: str, asked: list[Question], weighed: bool) -> None:
    """Each token of the answers, and its probability."""
    model = net()
    if weighed and method in (*WEIGHED, HYBRID):
        weights = [tuple(float(i + 1) for i in range(len(question.segments))) for question in asked]
        asked = [
            Question(segments=q.segments, prefix=q.prefix, suffix=q.suffix, weights=w)
            for q, w in zip(asked, weights, strict=True)
        ]
    generation = write_fused(model, asked, fusion=Fusion(method=method), max_new_tokens=3)
    for row, question in enumerate(asked):
        events = [event for event in generation.trace.events if event.sample_id == row]
        for step, event in enumerate(events):
            answer = generation.written[row][:step]
            pooled = "logit-mean" if method == HYBRID else method
            expected = torch.tensor(by_hand(model, pooled, question, answer), dtype=torch.float64)
            if method == HYBRID:
                fused = fused_logits(model, question, "shared", "1/N", answer).softmax(0)
                expected = (expected * fused).sqrt() / (expected * fused).sqrt().sum()
            assert event.token_id == int(expected.argmax())
            assert math.exp(event.log_prob) == pytest.approx(float(expected[event.token_id]), abs=1e-9)


def test_the_mean_of_log_probabilities_is_that_of_logits() -> None:
    assert Fusion(method="log-probability-mean") == Fusion(method="logit-mean")
    logits = torch.randn(3, 7, dtype=torch.float64)
    pooled = POOLS["logit-mean"](logits.log_softmax(-1), torch.full((3, 1), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(pooled.softmax(-1), logits.mean(0).softmax(-1))


def test_certainty_has_no_entropy() -> None:
    """A probability of 0 is no NaN."""
    certain = torch.tensor([[0.0, -torch.inf], [math.log(0.5)] * 2])
    assert torch.equal(POOLS["lowest-entropy"](certain, torch.ones(2, 1)), certain[0])


# ---- votes ---------------------------------------------------------------------------------------------------------


def answers(model: Llama, question: Question, count: int) -> list[list[int]]:
    """What each phrasing alone is answered with."""
    alone = [Question(segments=(s,), prefix=question.prefix, suffix=question.suffix) for s in question.segments]
    return [write_fused(model, [one], max_new_tokens=count).written[0] for one in alone]


def test_the_answer_that_most_phrasings_have_is_elected() -> None:
    model = net()
    one, other = (1, 2, 3), (20, 4)
    question = Question(segments=(one, other, one), suffix=(7,))
    mine, theirs, _ = answers(model, question, 3)
    assert mine != theirs
    vote = write_fused(model, [question], fusion=Fusion(method="vote"), max_new_tokens=3)
    assert vote.written == [mine]
    assert vote.sequences == [[*one, *other, *one, 7, *mine]]
    assert [event.position for event in vote.trace.events] == [9, 10, 11]
    assert {event.sample_id for event in vote.trace.events} == {0}
    heavy = Question(segments=question.segments, suffix=(7,), weights=(1.0, 3.0, 1.0))
    assert write_fused(model, [heavy], fusion=Fusion(method="vote"), max_new_tokens=3).written == [theirs]


def test_of_a_draw_the_likelier_answer_is_elected() -> None:
    model = net()
    question = Question(segments=((1, 2, 3), (20, 4)), suffix=(7,))
    alone = [Question(segments=(s,), suffix=(7,)) for s in question.segments]
    runs = [write_fused(model, [one], max_new_tokens=3) for one in alone]
    likeliest = max(runs, key=lambda run: sum(event.log_prob for event in run.trace.events))
    for asked in (question, Question(segments=question.segments[::-1], suffix=(7,))):
        vote = write_fused(model, [asked], fusion=Fusion(method="vote"), max_new_tokens=3)
        assert vote.written == likeliest.written


def test_what_counts_as_the_same_answer_is_the_callers() -> None:
    model = net()
    question = Question(segments=((1, 2, 3), (20, 4)), suffix=(7,), weights=(1.0, 1.5))
    _, second = answers(model, question, 3)
    vote = Fusion(method="vote")
    assert write_fused(model, [question], fusion=vote, max_new_tokens=3).written == [second]
    everything = write_fused(model, [question], fusion=vote, max_new_tokens=3, same_answer=lambda ids: "same")
    runs = [write_fused(model, [Question(segments=(s,), suffix=(7,))], max_new_tokens=3) for s in question.segments]
    likeliest = max(runs, key=lambda run: sum(event.log_prob for event in run.trace.events))
    assert everything.written == likeliest.written


def test_the_first_phrasing_of_a_vote_draws_as_the_question_alone() -> None:
    model = net()
    sampling = Sampling(temperature=1.0, seed=3)
    alone = Question(segments=((1, 2),), suffix=(5,))
    first = write_fused(model, [alone], max_new_tokens=6, sampling=sampling)
    written = []
    for weights in ((9.0, 1.0, 1.0), (1.0, 9.0, 1.0)):
        weighed = Question(segments=((1, 2),) * 3, suffix=(5,), weights=weights)
        vote = write_fused(model, [weighed], fusion=Fusion(method="vote"), max_new_tokens=6, sampling=sampling)
        written.append(vote.written)
    assert written[0] == first.written
    assert written[1] != first.written


def test_pools_take_log_probabilities_and_weights() -> None:
    log_probs: Tensor = torch.randn(4, 9, dtype=torch.float64).log_softmax(-1)
    weights = torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=torch.float64)
    expected = (weights * log_probs.exp()).sum(0)
    torch.testing.assert_close(POOLS["probability-mean"](log_probs, weights).exp(), expected)
