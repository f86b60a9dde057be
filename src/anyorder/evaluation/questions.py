"""Questions in several phrasings with the answers that count as right, and the sets that such questions come in."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anyorder.errors import UserError
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import check_positive

MASK = "[MASK]"
"""Stands for the missing word in a sentence of the form "mask"."""

Form = Literal["question", "mask", "opening"]
FORMS: tuple[Form, ...] = ("question", "mask", "opening")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        uuid: its name, with which results are found again.
        phrasings: the question in several wordings.
        answers: each of them is right.
    """

    uuid: str
    phrasings: tuple[str, ...]
    answers: tuple[str, ...]

    def pick(self, count: int | None = None, indices: Sequence[int] | None = None) -> Question:
        """Select some of the phrasings: the first `count`, or of these the ones at `indices` (from 0).

        Raises:
            UserError: there are not so many, or an index is out of range or named twice.
        """
        taken, known = self.phrasings, f"question {self.uuid!r} has {len(self.phrasings)} phrasings"
        if count is not None:
            if not 1 <= count <= len(taken):
                raise UserError(f"num_paraphrases is {count}, but {known}: give 1 to {len(taken)}.")
            taken = taken[:count]
        if indices is None:
            return replace(self, phrasings=taken)
        if not indices or len(set(indices)) < len(indices):
            named = ",".join(map(str, indices)) or "empty"
            raise UserError(f"indices is {named}: give at least one, each of them once.")
        for index in indices:
            if not 0 <= index < len(taken):
                why = known if count is None else f"num_paraphrases is {count}"
                raise UserError(
                    f"index {index} of indices is out of range, since {why}: give 0 to {len(taken) - 1}."
                )  # fmt: skip
        return replace(self, phrasings=tuple(taken[index] for index in indices))


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions of one form.

    Attributes:
        questions: in the order of the source.
        form: what a phrasing is: a "question", a sentence in which a word is missing ("mask"), or the "opening" of a
            sentence that the answer completes.
    """

    questions: tuple[Question, ...]
    form: Form

    def sample(self, count: int | None, seed: int) -> QuestionSet:
        """Return `count` questions, drawn without repetition; all of them, in their order, where `count` is None.

        Raises:
            UserError: `count` is not above 0.
        """
        if count is None or count >= len(self.questions):
            return self
        check_positive("max_samples", count)
        return replace(self, questions=tuple(random.Random(seed).sample(self.questions, count)))

    def split_off(self, count: int, seed: int) -> tuple[tuple[Question, ...], QuestionSet]:
        """Return `count` questions as examples, drawn, and the others, in their order.

        Raises:
            UserError: no question would be left.
        """
        if not 0 <= count < len(self.questions):
            raise UserError(
                f"shots is {count} for a set of {len(self.questions)} questions, which gives the examples too: "
                f"give 0 to {len(self.questions) - 1}, or take the examples from another set (shots_from)."
            )
        drawn = random.Random(seed).sample(range(len(self.questions)), count)
        others = tuple(question for number, question in enumerate(self.questions) if number not in set(drawn))
        return tuple(self.questions[number] for number in drawn), replace(self, questions=others)


def read_jsonl(file: Path) -> QuestionSet:
    """Read questions from a file with a JSON object in each line.

    `{"uuid": "q1", "phrasings": ["who wrote Emma?", "whose book is Emma?"], "answers": ["Jane Austen"]}`; `uuid` may be
    left out and is the number of the line then. A set whose every phrasing has a `[MASK]` is of the form "mask".

    Raises:
        UserError: the file cannot be read, or a line of it is something else.
    """
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {str(file)!r}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON ({error.msg}): write one object in each line.") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} holds {shown(record)}: write an object with phrasings and answers.")
        question = Question(
            uuid=str(record.get("uuid", number)),
            phrasings=_texts(record, "phrasings", where),
            answers=_texts(record, "answers", where),
        )
        if question.uuid in seen:
            first = f"which line {seen[question.uuid]} has already"
            raise UserError(f"{where} has the uuid {question.uuid!r}, {first}: give each question its own.")
        seen[question.uuid] = number
        questions.append(question)
    return question_set(questions, str(file))


def to_json(question: Question) -> str:
    """Return the line of a question in the format of `read_jsonl`."""
    fields = {"uuid": question.uuid, "phrasings": question.phrasings, "answers": question.answers}
    return json.dumps(fields, ensure_ascii=False)


def question_set(questions: Iterable[Question], source: str, form: Form | None = None) -> QuestionSet:
    """Return a set of questions, whose form follows from their phrasings unless given.

    Raises:
        UserError: there is none.
    """
    questions = tuple(questions)
    if not questions:
        raise UserError(f"{source!r} has no questions: give a set with at least one.")
    masked = all(MASK in phrasing for question in questions for phrasing in question.phrasings)
    return QuestionSet(questions=questions, form=form or ("mask" if masked else "question"))


def _lines(file: Path) -> list[str]:
    try:
        # Not splitlines, which also cuts at characters that a text may have.
        return file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{str(file)!r} is not UTF-8 at byte {error.start}: convert it to UTF-8.") from None


def _texts(record: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    """Return a field that must be a list of texts."""
    if field not in record:
        has = f"its fields are {', '.join(map(str, record)) or 'none'}"
        raise UserError(f"{where} has no field {field!r} ({has}): add a list of at least one text.")
    texts = record[field]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{where} has {shown(texts)} for {field!r}: give a list of at least one text, none empty.")
    return tuple(texts)
