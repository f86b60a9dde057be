"""How good the network finds phrasings, against plain runs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.scores import best, confidence, likelihood, weigh
from anyorder.errors import UserError
from tests.decoding.fusion.test_decoder import net, questions
from tests.decoding.fusion_oracle import single_logits

LOOP = settings(max_examples=8, deadline=None)


@LOOP
@given(asked=st.lists(questions, min_size=1, max_size=3))
def test_confidence_is_that_of_the_first_token(asked: list[Question]) -> None:
    model = net()
    for question, scores in zip(asked, confidence(model, asked), strict=True):
        prompts = [[*question.prefix, *segment, *question.suffix] for segment in question.segments]
        expected = [float(single_logits(model, prompt).softmax(0).max()) for prompt in prompts]
        assert scores == pytest.approx(expected, abs=1e-9)


@LOOP
@given(asked=st.lists(questions, min_size=1, max_size=3))
def test_likelihood_is_a_geometric_mean(asked: list[Question]) -> None:
    model = net()
    for question, scores in zip(asked, likelihood(model, asked), strict=True):
        expected = []
        for segment in question.segments:
            ids = [*question.prefix, *segment]
            known = range(max(len(question.prefix), 1), len(ids))
            logs = [float(single_logits(model, ids[:end]).log_softmax(0)[ids[end]]) for end in known]
            expected.append(math.exp(sum(logs) / len(logs)) if logs else 1 / model.config.vocab_size)
        assert scores == pytest.approx(expected, abs=1e-9)


def test_weights_follow_the_scores() -> None:
    model = net()
    question = Question(segments=((1, 2), (3,), (4, 5, 6)), prefix=(7,), suffix=(8,))
    for by, scores in (("confidence", confidence), ("likelihood", likelihood)):
        (weighed,) = weigh(model, [question], by)
        assert weighed.weights == pytest.approx(tuple(scores(model, [question])[0]))
        assert sum(weighed.shares) == pytest.approx(1)
    with pytest.raises(UserError, match="weights is 'beauty': give numbers, or one of confidence, likelihood"):
        weigh(model, [question], "beauty")


def test_the_best_are_kept_in_their_order() -> None:
    question = Question(segments=((1,), (2,), (3,), (4,)), suffix=(8,), weights=(1.0, 5.0, 2.0, 5.0))
    assert best(question, 3) == [1, 2, 3]
    assert best(question, 1) == [1]
    assert best(question, 9) == [0, 1, 2, 3]
    assert question.only([1, 3]) == Question(segments=((2,), (4,)), suffix=(8,), weights=(5.0, 5.0))


def test_keeping_needs_weights_and_a_number() -> None:
    question = Question(segments=((1,), (2,)), weights=(1.0, 2.0))
    for keep in (0, -1, 1.5, True):
        with pytest.raises(UserError, match=f"keep is {keep}: give a whole number above 0"):
            best(question, keep)
    with pytest.raises(UserError, match="keep is 1 without weights: give weights='confidence', 'likelihood', or"):
        best(Question(segments=((1,), (2,))), 1)
