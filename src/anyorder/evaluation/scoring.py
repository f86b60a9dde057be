"""Four measures of whether an answer is right, and intervals of their means."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyorder.errors import UserError

if TYPE_CHECKING:
    import numpy as np

INSTALL = "pip install 'anyorder[fuse]'"
RESAMPLES = 9999


# ---- one answer ------------------------------------------------------------------------------------


@functools.cache
def _pipeline() -> Any:
    """Return spaCy's English tokenizer with its lookup table of lemmas, a package: nothing is downloaded."""
    for package in ("spacy", "spacy_lookups_data"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"lemmas need the package {package.replace('_', '-')}, which is not installed: {INSTALL}.")
    import spacy

    pipeline = spacy.blank("en")
    pipeline.add_pipe("lemmatizer", config={"mode": "lookup"})
    pipeline.initialize()
    return pipeline


def lemmas(texts: Iterable[str]) -> list[list[str]]:
    """Return the lemmas of each text in lower case, without white space.

    Words are put in lower case first, since the table has few others: "Cars" at the beginning of an answer and "cars"
    within it have the same lemma.

    Raises:
        UserError: spaCy or its tables are not installed.
    """
    documents = _pipeline().pipe(" ".join(text.lower().split()) for text in texts)
    return [[token.lemma_.lower() for token in document if not token.is_space] for document in documents]


def lemma_match(answers: Iterable[Sequence[str]], prediction: Sequence[str]) -> bool:
    """Return whether the lemmas of one of the answers are in those of the prediction, one after another."""
    return any(_contiguous(list(answer), list(prediction)) for answer in answers)


def _contiguous(part: list[str], whole: list[str]) -> bool:
    starts = range(len(whole) - len(part) + 1)
    return bool(part) and any(whole[start : start + len(part)] == part for start in starts)


def normalized(text: str) -> str:
    """Normalize a text as SQuAD does: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answers: Iterable[str], prediction: str) -> bool:
    """Return whether the prediction is one of the answers, both normalized."""
    return normalized(prediction) in set(map(normalized, answers))


def containment(answers: Iterable[str], prediction: str) -> bool:
    """Return whether the prediction contains one of the answers as whole words, both normalized."""
    return any(_contiguous(normalized(answer).split(), normalized(prediction).split()) for answer in answers)


def token_f1(answers: Iterable[str], prediction: str) -> float:
    """Return the best F1 of the prediction's words against those of an answer, both normalized, as SQuAD has it."""
    return max(map(functools.partial(_f1, normalized(prediction).split()), answers), default=0.0)


def _f1(predicted: list[str], answer: str) -> float:
    gold = normalized(answer).split()
    if not gold or not predicted:
        return float(gold == predicted)
    shared = (Counter(gold) & Counter(predicted)).total()
    return 2 * shared / (len(gold) + len(predicted))


# ---- many answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One number for each prediction, 0 to 1; "lemma" is empty without lemmas."""

    lemma: tuple[float, ...]
    exact: tuple[float, ...]
    f1: tuple[float, ...]
    containment: tuple[float, ...]


def score(
    answers: Sequence[Sequence[str]],
    predictions: Sequence[str],
    answer_lemmas: Sequence[Sequence[Sequence[str]]] = (),
    predicted_lemmas: Sequence[Sequence[str]] = (),
) -> Scores:
    """Return every measure of every prediction.

    Args:
        answers: those that are right, for each prediction.
        predictions: what was answered.
        answer_lemmas: of each answer; may be left out together with `predicted_lemmas`.
        predicted_lemmas: of each prediction.
    """
    return Scores(
        lemma=tuple(float(lemma_match(*pair)) for pair in zip(answer_lemmas, predicted_lemmas, strict=True)),
        exact=tuple(float(exact_match(*pair)) for pair in zip(answers, predictions, strict=True)),
        f1=tuple(token_f1(*pair) for pair in zip(answers, predictions, strict=True)),
        containment=tuple(float(containment(*pair)) for pair in zip(answers, predictions, strict=True)),
    )


def any_of(values: Sequence[float], groups: Sequence[str]) -> tuple[float, ...]:
    """Return the best value of each group, in the order in which the groups first appear."""
    return _by_group(values, groups, max)


def mean_of(values: Sequence[float], groups: Sequence[str]) -> tuple[float, ...]:
    """Return the mean value of each group, in the order in which the groups first appear."""
    return _by_group(values, groups, lambda inside: sum(inside) / len(inside))


def agreement(predictions: Sequence[str], groups: Sequence[str]) -> tuple[float, ...]:
    """Return for each group the share of pairs of predictions that are equal when normalized; 1 for a single one."""
    inside: dict[str, list[str]] = {}
    for group, prediction in zip(groups, predictions, strict=True):
        inside.setdefault(group, []).append(normalized(prediction))
    shares = []
    for texts in inside.values():
        pairs = [first == second for first, second in itertools.combinations(texts, 2)]
        shares.append(sum(pairs) / len(pairs) if pairs else 1.0)
    return tuple(shares)


def _by_group(
    values: Sequence[float], groups: Sequence[str], join: Callable[[list[float]], float]
) -> tuple[float, ...]:
    inside: dict[str, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        inside.setdefault(group, []).append(value)
    return tuple(join(group) for group in inside.values())


# ---- how sure a mean is ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the interval that holds 95 % of the means of resampled questions."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def interval(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return the mean of one value per question, from 0 to 1, with its bootstrap interval (percentiles, 95 %).

    Where all answers are right, or all wrong, resampling sees no doubt; there it is the exact interval of a share.

    Args:
        values: one per question, which are what is resampled. Phrasings of one question are not independent: take their
            mean first (`mean_of`).
        seed: of the resampling.
        resamples: how often.

    Raises:
        UserError: there are no values, or SciPy is not installed.
    """
    found = _resampled(values, seed, resamples)
    if found.low < found.high or found.mean not in (0, 1):
        return found
    from scipy.stats import binomtest

    exact = binomtest(round(sum(values)), len(values)).proportion_ci()
    return Interval(mean=found.mean, low=float(exact.low), high=float(exact.high))


def difference(
    values: Sequence[float], baseline: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the mean difference between two methods on the same questions, which are resampled in pairs."""
    return _resampled([value - other for value, other in zip(values, baseline, strict=True)], seed, resamples)


def _resampled(values: Sequence[float], seed: int, resamples: int) -> Interval:
    if not values:
        raise UserError("there are no answers to take the mean of: give results of at least one question.")
    if importlib.util.find_spec("scipy") is None:
        raise UserError(f"intervals need the package scipy, which is not installed: {INSTALL}.")
    import numpy as np
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(set(values)) == 1:  # resampling has nothing to vary, and one value is too few for SciPy
        return Interval(mean=values[0], low=values[0], high=values[0])
    generator = np.random.default_rng(seed)
    found = bootstrap(
        (data,), np.mean, n_resamples=resamples, batch=_batch(data), method="percentile", rng=generator
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high))


def _batch(data: np.ndarray) -> int:
    """Return how many resamples take some megabytes."""
    return max(1, 1_000_000 // len(data))
