"""Methods that answer questions in several phrasings, on the same questions: how often each is right, and its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.errors import UserError
from anyorder.evaluation.prompts import PromptParts
from anyorder.evaluation.protocol import CONCATENATION, SINGLE, Method, asker, one_by_one
from anyorder.evaluation.question_runs import Results, run_questions
from anyorder.evaluation.questions import Question
from anyorder.evaluation.scoring import (
    Interval,
    Scores,
    agreement,
    any_of,
    difference,
    interval,
    lemmas,
    mean_of,
    score,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama


COMPARED = (
    Method(name=SINGLE),
    Method(name=CONCATENATION),
    *(
        Method(name="attention", positions=positions, correction=correction)
        for positions in ("shared", "running", "right", "spread")
        for correction in ("1/N", "none")
    ),
    Method(name="attention", correction="ape:0.9,0.9"),
    Method(name="logit-mean"),
    Method(name="probability-mean"),
    Method(name="max"),
    Method(name="lowest-entropy"),
    Method(name="contrast"),
    Method(name="attention+logit-mean"),
    Method(name="vote"),
)
"""The first is what the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """The results of one method with N phrasings.

    Attributes:
        name: label of the method; a single phrasing has two: the mean and the best of all, which cannot be chosen.
        phrasings: N.
        lemma: share of answers that are right by their lemmas, which is what "right" means below.
        exact, f1, containment: the other measures.
        gain: of "lemma" over a single phrasing, on the same questions.
        seconds: per question; batched, so a machine and a batch size belong to it.
    """

    name: str
    phrasings: int
    lemma: Interval
    exact: Interval
    f1: Interval
    containment: Interval
    gain: Interval
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All lines, and how often two phrasings of a question get the same answer, by number of phrasings."""

    questions: int
    lines: tuple[Line, ...]
    agreement: dict[int, Interval]

    def markdown(self) -> str:
        """Return the table for the largest number of phrasings."""
        most = max(line.phrasings for line in self.lines)
        rows = [line for line in self.lines if line.phrasings == most]
        alone = next(line.seconds for line in rows if line.name == MEAN)
        head = f"| {most} phrasings | right, % | against a single one | exact, % | token F1, % | time |"
        lines = [head, "|---|---|---|---|---|---|"]
        for line in rows:
            against = "" if line.name == MEAN else _signed(line.gain)
            lines.append(
                f"| {line.name} | {line.lemma} | {against} | {100 * line.exact.mean:.1f} | {100 * line.f1.mean:.1f} | "
                f"{line.seconds / alone:.1f} |"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return dataclasses.asdict(self)


MEAN, BEST = "single, mean", "single, best of all"


def compare(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    parts: PromptParts,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    counts: Sequence[int] = (),
    methods: Sequence[Method] = COMPARED,
    max_new_tokens: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Comparison:
    """Answer every question by every method, and score the answers.

    The answers are in `folder`, a results file for each method; what is there already is not asked again.

    Args:
        model: the network.
        tokenizer: its tokenizer.
        questions: all with the same number of phrasings.
        parts: the text around the phrasings.
        settings: whatever else the answers depend on, as JSON.
        folder: for the results files.
        counts: numbers of phrasings, each the first so many; 1, 2, 4, ... and all of them unless given.
        methods: what is compared; a single phrasing, which all are compared with, is always among them.
        max_new_tokens: tokens of an answer at most.
        batch_size: questions at a time.
        seed: of the intervals.
        on_progress: callback, called with the method, and how many questions of how many it has answered.

    Raises:
        UserError: a count is out of range, an option is invalid, or the folder has results of another run.
    """
    most = len(questions[0].phrasings)
    counts = sorted(set(counts)) if counts else _doubling(most)
    for count in counts:
        if not 1 <= count <= most:
            raise UserError(f"counts has {count}, but the questions have {most} phrasings: give 1 to {most}.")
    methods = [Method(name=SINGLE), *(other for other in methods if other.name != SINGLE)]

    def answers(method: Method, count: int) -> Results:
        asked = [question.pick(count) for question in questions]
        asked = one_by_one(asked) if method.name == SINGLE else asked
        return run_questions(
            asked,
            parts,
            asker(model, tokenizer, parts, method, max_new_tokens=max_new_tokens),
            {**settings, **method.settings(), "max_new_tokens": max_new_tokens},
            folder / f"{_slug(method.label)}-{count}.feather",
            batch_size=batch_size,
            on_progress=lambda done: on_progress(f"{method.label}, {count}", done, len(asked)),
        )

    alone = answers(methods[0], max(counts))
    lines, agreed = [], {}
    gold = [[*texts] for texts in (question.answers for question in questions)]
    flat = lemmas([answer for answers_ in gold for answer in answers_])
    gold_lemmas = _regrouped(flat, [len(answers_) for answers_ in gold])
    for count in counts:
        baseline, singles = _single_lines(alone, gold, gold_lemmas, most=max(counts), count=count, seed=seed)
        lines += singles
        predictions = [row["prediction"] for row in _first(alone.rows, max(counts), count)]
        groups = [str(number // count) for number in range(len(predictions))]
        if count > 1:
            agreed[count] = interval(agreement(predictions, groups), seed=seed)
        for method in methods[1:]:
            if count == 1 and method.same_alone:
                continue
            results = answers(method, count)
            predicted = results.column("prediction")
            scores = score(gold, predicted, gold_lemmas, lemmas(predicted))
            seconds = results.seconds / len(questions)
            lines.append(_line(method.label, count, scores, baseline, seconds, seed))
    return Comparison(questions=len(questions), lines=tuple(lines), agreement=agreed)


def _single_lines(
    alone: Results,
    gold: list[list[str]],
    gold_lemmas: list[list[list[str]]],
    *,
    most: int,
    count: int,
    seed: int,
) -> tuple[Scores, list[Line]]:
    """Return the mean over the phrasings of each question, and two lines: the mean, and the best of them."""
    rows = _first(alone.rows, most, count)
    predicted = [row["prediction"] for row in rows]
    groups = [str(number // count) for number in range(len(rows))]
    scores = score(
        [answers for answers in gold for _ in range(count)],
        predicted,
        [answers for answers in gold_lemmas for _ in range(count)],
        lemmas(predicted),
    )
    mean, best = (
        Scores(**{name: join(values, groups) for name, values in dataclasses.asdict(scores).items()})
        for join in (mean_of, any_of)
    )
    seconds = alone.seconds / len(alone.rows)
    lines = [_line(MEAN, count, mean, mean, seconds, seed)]
    if count > 1:
        lines.append(_line(BEST, count, best, mean, seconds * count, seed))
    return mean, lines


def _line(name: str, count: int, scores: Scores, baseline: Scores, seconds: float, seed: int) -> Line:
    return Line(
        name=name,
        phrasings=count,
        gain=difference(scores.lemma, baseline.lemma, seed=seed),
        seconds=seconds,
        **{measure: interval(values, seed=seed) for measure, values in dataclasses.asdict(scores).items()},
    )


def _first(rows: list[dict[str, Any]], most: int, count: int) -> list[dict[str, Any]]:
    """Return the first `count` of the `most` rows of each question."""
    return [row for number, row in enumerate(rows) if number % most < count]


def _regrouped(values: list[list[str]], sizes: list[int]) -> list[list[list[str]]]:
    remaining = iter(values)
    return [[next(remaining) for _ in range(size)] for size in sizes]


def _doubling(most: int) -> list[int]:
    return sorted({*(2**power for power in range(most.bit_length())), most})


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace("/", "").replace(":", "").replace(",", "-")


def _signed(gain: Interval) -> str:
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
