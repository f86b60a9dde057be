"""Published sets of questions: PARAREL, WebQuestions, and the tables in which WebQA and MyriadLAMA come."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from anyorder.errors import UserError
from anyorder.evaluation.questions import FORMS, MASK, Form, Question, QuestionSet, question_set, read_jsonl

PATTERNS, FACTS = "graphs_json", "trex_lms_vocab"
"""Folders of PARAREL: `[X]` and `[Y]` in a pattern stand for the two labels of a fact."""


def read_questions(
    source: str | Path,
    *,
    split: str | None = None,
    min_phrasings: int = 1,
    relations: Sequence[str] = (),
    form: Form | None = None,
) -> QuestionSet:
    """Read questions from any source; its files and columns say what they are.

    Args:
        source: a `.jsonl` file of one's own (`read_jsonl`), PARAREL's folder, WebQuestions' folder or one of its
            `.json` files, a `.parquet` file, a folder written by `datasets`, or the id of a data set on the hub.
        split: of WebQuestions or of a data set; the test split unless given.
        min_phrasings: questions with fewer are left out.
        relations: of PARAREL, such as "P20"; all unless given.
        form: of the phrasings, if it is not the one that the set is read in: "opening" for PARAREL (patterns that end
            with the answer), "mask" for all of PARAREL's patterns.

    Raises:
        UserError: nothing is there, or it is something else, or no question is left.
    """
    if form is not None and form not in get_args(Form):
        raise UserError(f"form is {form!r}: give one of {', '.join(FORMS)}.")
    path = Path(source)
    if (path / PATTERNS).is_dir():
        return read_pararel(path, min_patterns=min_phrasings, relations=relations, form=form or "opening")
    if relations:
        raise UserError(f"relations is {', '.join(relations)} for {str(source)!r}, which is not PARAREL: leave it out.")
    if path.suffix == ".jsonl" and path.is_file():
        found = read_jsonl(path)
    elif path.suffix == ".json" and path.is_file():
        found = read_web_questions(path)
    elif (path / "main").is_dir():
        found = read_web_questions(_split_file(path / "main", split or "test"))
    else:
        found = _from_table(str(source), *_table(str(source), split))
    enough = [question for question in found.questions if len(question.phrasings) >= min_phrasings]
    if not enough:
        most = max(len(question.phrasings) for question in found.questions)
        raise UserError(
            f"no question of {str(source)!r} has {min_phrasings} phrasings (the most is {most}): ask for fewer, or let "
            "`anyorder data paraphrase` write more."
        )
    return question_set(enough, str(source), form or found.form)


def read_pararel(
    folder: Path, *, min_patterns: int = 1, relations: Sequence[str] = (), form: Form = "opening"
) -> QuestionSet:
    """Read the facts of PARAREL, each asked by all patterns of its relation.

    Facts with the same subject are one question with several answers.

    Args:
        folder: with `graphs_json` and `trex_lms_vocab`.
        min_patterns: relations with fewer are left out.
        relations: only these, such as "P20".
        form: "opening": patterns that end with the answer, cut off before it; "mask": all of them, with `[MASK]` where
            the answer goes.

    Raises:
        UserError: a file is missing or has another form, a relation is unknown, or none is left.
    """
    if form == "question":
        raise UserError("form is 'question', but PARAREL has sentences: give 'opening' or 'mask'.")
    known = sorted(file.stem for file in (folder / PATTERNS).glob("*.jsonl"))
    for relation in relations:
        if relation not in known:
            raise UserError(f"relation {relation!r} is not in {str(folder)!r}: give one of {', '.join(known)}.")
    questions: list[Question] = []
    most = 0
    for relation in relations or known:
        patterns = pararel_patterns(folder, relation, form)
        most = max(most, len(patterns))
        if len(patterns) >= max(1, min_patterns):
            questions += _ask(_facts(folder / FACTS / f"{relation}.jsonl"), patterns)
    if not questions:
        raise UserError(
            f"no relation of {str(folder)!r} has {min_patterns} patterns of the form {form!r} (the most is {most}): "
            "ask for fewer."
        )
    return question_set(questions, str(folder), form)


def pararel_patterns(folder: Path, relation: str, form: Form) -> list[str]:
    """Read the patterns of a relation, `[X]` for the subject: openings, or sentences with `[MASK]` for the answer."""
    patterns = [
        str(_field(record, "pattern", where)) for record, where in _records(folder / PATTERNS / f"{relation}.jsonl")
    ]
    if form == "mask":
        shaped = [pattern.strip().replace("[Y]", MASK) for pattern in patterns]
    else:
        shaped = [match[1] for pattern in patterns if (match := re.fullmatch(r"(.*\S)\s*\[Y\]\W*", pattern))]
    return list(dict.fromkeys(shaped))  # some differ in their last dot alone


def read_web_questions(file: Path) -> QuestionSet:
    """Read questions from a file of WebQuestions, one phrasing each.

    Raises:
        UserError: the file has another form.
    """
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(file)!r} is not JSON ({error}): fetch it again.") from None
    if not isinstance(records, list):
        raise UserError(f"{str(file)!r} is not a list of questions: give a file of WebQuestions, or a .jsonl file.")
    questions = []
    for number, record in enumerate(records, start=1):
        where = f"question {number} of {str(file)!r}"
        answers = _answers(_field(record, "answers", where), where)
        text = str(_field(record, "qText", where))
        questions.append(Question(uuid=str(_field(record, "qId", where)), phrasings=(text,), answers=answers))
    return question_set(questions, str(file))


def _split_file(folder: Path, split: str) -> Path:
    file = folder / f"{split}.json"
    if not file.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        raise UserError(f"split is {split!r}, which {str(folder)!r} does not have: give one of {known}.")
    return file


# ---- PARAREL ---------------------------------------------------------------------------------------


def _ask(facts: dict[str, tuple[str, list[str]]], patterns: list[str]) -> Iterable[Question]:
    for subject, (uuid, answers) in facts.items():
        phrasings = tuple(pattern.replace("[X]", subject) for pattern in patterns)
        yield Question(uuid=uuid, phrasings=phrasings, answers=tuple(answers))


def _facts(file: Path) -> dict[str, tuple[str, list[str]]]:
    """Return for each subject the uuid of its first fact, and its objects."""
    facts: dict[str, tuple[str, list[str]]] = {}
    for record, where in _records(file):
        subject, uuid = str(_field(record, "sub_label", where)), str(_field(record, "uuid", where))
        answers = facts.setdefault(subject, (uuid, []))[1]
        if (answer := str(_field(record, "obj_label", where))) not in answers:
            answers.append(answer)
    return facts


def _records(file: Path) -> list[tuple[dict[str, Any], str]]:
    """Read the JSON objects of a file, each with its file and line."""
    if not file.is_file():
        raise UserError(f"{str(file)!r} is not there, but PARAREL has it: fetch the data again.")
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        where = f"line {number} of {str(file)!r}"
        if not line.strip():
            continue
        try:
            records.append((json.loads(line), where))
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON ({error.msg}): fetch the data again.") from None
    return records


def _field(record: Any, field: str, where: str) -> Any:
    if not isinstance(record, dict) or field not in record:
        raise UserError(f"{where} has no field {field!r}: fetch the data again, or write questions to a .jsonl file.")
    return record[field]


# ---- tables ----------------------------------------------------------------------------------------


def _table(source: str, split: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the rows of a data set, and its columns."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"{source!r} is no file of questions, and other sets need the package datasets, which is not installed: "
            "pip install 'anyorder[fuse]'."
        )
    import datasets

    path = Path(source)
    try:
        if path.suffix == ".parquet" and path.is_file():
            found = datasets.Dataset.from_parquet(str(path))
        elif path.is_dir():
            found = datasets.load_from_disk(str(path))
        elif path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise FileNotFoundError("no such set of questions")
        else:
            found = datasets.load_dataset(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"dataset is {source!r}, which cannot be read ({' '.join(str(error).split())[:200]}): give a .jsonl file, "
            "the folder of PARAREL or WebQuestions, a folder or .parquet file of datasets, or an id on the hub."
        ) from None
    if isinstance(found, dict):
        names = list(found)
        chosen = split or ("test" if "test" in names else names[0])
        if chosen not in names:
            raise UserError(f"split is {chosen!r}, which {source!r} does not have: give one of {', '.join(names)}.")
        found = found[chosen]
    return [dict(row) for row in found], list(found.column_names)


def _from_table(source: str, rows: list[dict[str, Any]], columns: list[str]) -> QuestionSet:
    """Make questions of rows, by the names of their columns."""

    def need(*names: str) -> None:
        missing = [name for name in names if name not in columns]
        if missing:
            raise UserError(
                f"dataset {source!r} has no column {', '.join(map(repr, missing))} (it has {', '.join(columns)}): "
                "give a set with the columns phrasings and answers; question (or paraphrase0, paraphrase1, ...) and "
                "answers; uuid, manual_paraphrases, auto_paraphrases and answers; or uuid, sub_ent, template and "
                "obj_aliases."
            )

    if "template" in columns or "obj_aliases" in columns:
        need("uuid", "sub_ent", "template", "obj_aliases")
        return question_set(_myriad_lama(rows, source), source, "mask")
    need("answers")
    if "manual_paraphrases" in columns:
        need("uuid", "auto_paraphrases")
        parts = [
            (str(row["uuid"]), [*row["manual_paraphrases"], *row["auto_paraphrases"]], row["answers"]) for row in rows
        ]
    elif "phrasings" in columns:
        parts = [(_name(row, number), row["phrasings"], row["answers"]) for number, row in enumerate(rows)]
    else:
        numbered = sorted(
            (name for name in columns if re.fullmatch(r"paraphrase\d+", name)), key=lambda name: int(name[10:])
        )
        # With paraphrase0 the question itself is among them.
        asked = numbered if "paraphrase0" in numbered else ["question", *numbered]
        need(*asked)
        parts = [(_name(row, number), [row[name] for name in asked], row["answers"]) for number, row in enumerate(rows)]
    repeated = [uuid for uuid, count in Counter(uuid for uuid, _, _ in parts).items() if count > 1]
    if repeated:
        raise UserError(f"dataset {source!r} has the uuid {repeated[0]!r} more than once: give each row its own.")
    questions = []
    for number, (uuid, phrasings, answers) in enumerate(parts):
        where = f"row {number} of {source!r}"
        kept = tuple(text for text in phrasings if text and text.strip())
        if not kept:
            raise UserError(f"{where} has no phrasing: leave it out.")
        questions.append(Question(uuid=uuid, phrasings=kept, answers=_answers(answers, where)))
    return question_set(questions, source)


def _myriad_lama(rows: list[dict[str, Any]], source: str) -> Iterable[Question]:
    """Yield one question per uuid from rows of one template each, those by hand first."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(str(row["uuid"]), []).append(row)
    for uuid, templates in grouped.items():
        templates.sort(key=lambda row: not row.get("is_manual", False))
        asked = (row["template"].replace("[X]", row["sub_ent"]).replace("[Y]", MASK) for row in templates)
        answers = _answers(templates[0]["obj_aliases"], f"uuid {uuid!r} of {source!r}")
        yield Question(uuid=uuid, phrasings=tuple(dict.fromkeys(asked)), answers=answers)


def _name(row: dict[str, Any], number: int) -> str:
    return str(row.get("uuid", number))


def _answers(answers: Any, where: str) -> tuple[str, ...]:
    """Return the answers of a row: one text, or a list of them."""
    texts = (answers,) if isinstance(answers, str) else tuple(map(str, answers))
    if not any(text.strip() for text in texts):
        raise UserError(f"{where} has no answer: add one, or leave it out.")
    return tuple(text for text in texts if text.strip())
