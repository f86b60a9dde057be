"""Scoring: each measure against a plain reading of its definition, and intervals against their promise."""

from __future__ import annotations

import importlib.util
import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyorder.errors import UserError
from anyorder.evaluation import scoring
from anyorder.evaluation.scoring import (
    Interval,
    agreement,
    any_of,
    containment,
    difference,
    exact_match,
    interval,
    lemma_match,
    lemmas,
    mean_of,
    normalized,
    score,
    token_f1,
)  # fmt: skip

WORDS = st.lists(st.sampled_from(["new", "york", "city", "the", "old"]), max_size=5)


def test_lemmas_need_no_download_and_do_not_depend_on_case() -> None:
    [mice, cars, name] = lemmas(["The mice  were running.\n", "CARS Cars cars", "Tom, dogs"])
    assert mice == ["the", "mouse", "be", "run", "."]
    assert cars == ["car"] * 3
    assert name == ["tom", ",", "dog"]


@pytest.mark.parametrize(
    ("answer", "prediction", "right"),
    [
        ("German language", "the german languages, mostly", True),
        ("language German", "german language", False),
        ("New York", "new old york", False),
        ("Rome", "Romeo", False),
        ("London", "", False),
        ("", "London", False),
        ("politicians", "He was a politician", True),
    ],
)
def test_lemma_match(answer: str, prediction: str, right: bool) -> None:
    [gold, predicted] = lemmas([answer, prediction])
    assert lemma_match([gold], predicted) == right
    assert lemma_match([["zebra"], gold], predicted) == right


@given(WORDS, WORDS)
def test_a_match_is_a_slice(part: list[str], whole: list[str]) -> None:
    slices = [whole[start:end] for start, end in itertools.combinations(range(len(whole) + 1), 2)]
    assert lemma_match([part], whole) == (part in slices)


def test_normalized_as_squad_has_it() -> None:
    assert normalized("The  U.S. Army,\n an army!") == "us army army"
    assert normalized("Athena") == "athena"


def test_measures_of_text() -> None:
    assert exact_match(["Paris", "The Hague"], "hague.")
    assert not exact_match(["Paris"], "Paris, France")
    assert containment(["Paris"], "It is Paris, France.")
    assert not containment(["Par", ""], "Paris")
    assert token_f1(["New York City"], "new york") == pytest.approx(0.8)
    assert token_f1(["x", "New York City"], "New York City") == 1
    assert token_f1(["the"], "a") == 1  # nothing is left of either
    assert token_f1(["x"], "the") == 0


@given(WORDS, WORDS)
def test_token_f1_is_the_harmonic_mean(gold: list[str], predicted: list[str]) -> None:
    left, right = ([word for word in words if word != "the"] for words in (gold, predicted))
    remaining, shared = list(right), 0
    for word in left:
        if word in remaining:
            remaining.remove(word)
            shared += 1
    value = token_f1([" ".join(gold)], " ".join(predicted))
    if not shared:
        assert value == (left == right)
    else:
        precision, recall = shared / len(right), shared / len(left)
        assert value == pytest.approx(2 * precision * recall / (precision + recall))


def test_many_at_once() -> None:
    answers, predictions = [["Cars"], ["Rome", "Roma"]], ["a car", "Milan"]
    gold = [lemmas(texts) for texts in answers]
    scores = score(answers, predictions, gold, lemmas(predictions))
    assert scores.lemma == (1.0, 0.0)
    assert scores.exact == scores.containment == (0.0, 0.0)
    assert scores.f1 == (0.0, 0.0)
    assert score(answers, ["the cars", "roma"]).exact == (1.0, 1.0)
    assert score(answers, predictions).lemma == ()


def test_groups() -> None:
    groups = ["b", "a", "b", "b", "c"]
    assert any_of([0, 1, 0.5, 0, 0], groups) == (0.5, 1, 0)
    assert mean_of([0, 1, 0.5, 1, 0], groups) == (0.5, 1, 0)
    assert list(agreement(["Rome", "x", "rome.", "Milan", "y"], groups)) == pytest.approx([1 / 3, 1, 1])


def test_an_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    # 200 samples of 150 answers, right with probability 0.3: of the true intervals 95 % hold the mean, and fewer than
    # 178 would have a probability below 1e-4.
    draws = random.Random(0)
    held = 0
    for seed in range(200):
        found = interval([float(draws.random() < 0.3) for _ in range(150)], seed=seed, resamples=300)
        held += found.low <= 0.3 <= found.high
        assert 0 <= found.low < found.mean < found.high <= 1
    assert held >= 178


def test_intervals_are_those_of_resampled_means() -> None:
    values = np.random.default_rng(1).random(40)
    draws = np.random.default_rng(2)
    means = [draws.choice(values, len(values)).mean() for _ in range(20_000)]
    found = interval(values.tolist(), seed=3)
    assert found.mean == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(list(np.percentile(means, [2.5, 97.5])), abs=0.005)
    assert found == interval(values.tolist(), seed=3) != interval(values.tolist(), seed=4)
    assert str(interval([0.25, 0.25])) == "25.0 [25.0, 25.0]"


def test_no_doubt_seen_is_not_no_doubt() -> None:
    # All of n right: shares below 0.025 ** (1 / n) would have let that happen with probability 2.5 % at most.
    for count in (1, 20):
        right, wrong = interval([1.0] * count), interval([0.0] * count)
        assert (right.mean, right.high, wrong.mean, wrong.low) == (1, 1, 0, 0)
        assert right.low == pytest.approx(0.025 ** (1 / count))
        assert wrong.high == pytest.approx(1 - 0.025 ** (1 / count))
    assert difference([1.0, 0.0], [1.0, 0.0]) == Interval(mean=0, low=0, high=0)


def test_a_difference_is_paired() -> None:
    draws = random.Random(0)
    base = [float(draws.random() < 0.5) for _ in range(200)]
    better = [1.0 if draws.random() < 0.1 else value for value in base]
    found = difference(better, base)
    assert found.low > 0  # although the intervals of the two overlap:
    assert interval(better).low < interval(base).high
    with pytest.raises(ValueError, match="longer"):
        difference([1.0], [1.0, 0.0])


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there are no answers to take the mean of"):
        interval([])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scoring._pipeline.cache_clear()
    with pytest.raises(UserError, match=r"lemmas need the package spacy, .*: pip install 'anyorder\[fuse\]'"):
        lemmas(["a"])
    with pytest.raises(UserError, match="intervals need the package scipy"):
        interval([0.0, 1.0])
