"""Asking many questions, with the answers in a file that is never half written and that a later run resumes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.errors import UserError
from anyorder.evaluation.prompts import PromptParts
from anyorder.evaluation.questions import Question
from anyorder.evaluation.scoring import INSTALL, lemmas
from anyorder.utils.files import check_place, claimed, is_overwriting, whole_file
from anyorder.utils.numbers import check_positive

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("uuid", "paraphrases", "answers", "prediction", "generation")
"""Of a results file."""

LEMMA_COLUMNS = ("predict_lemma", "answer_lemmas")
"""Further ones: the lemmas of the prediction, and of each answer that counts."""

ABOUT = b"anyorder"
"""Key in a results file's metadata, beside the columns: how the answers were made, and what they took."""

CHECKSUM = b"anyorder_checksum"
"""Key beside it: the SHA-256 of what the file holds."""

SAVED_EVERY = 20.0
"""Seconds."""

Ask = Callable[[list[list[str]]], tuple[list[str], int]]
"""From phrasings as they are written in the prompt, a list for each question, to the generation for each question, and
the number of forward passes."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The answers of a run, finished or not.

    Attributes:
        rows: a value for each of `COLUMNS`, and of the lemmas if they are there.
        settings: what the answers depend on.
        total: rows of the finished run.
        seconds: spent on the rows that are there.
        passes: forward passes for them.
    """

    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    total: int
    seconds: float
    passes: int

    @property
    def has_lemmas(self) -> bool:
        """Whether the rows have `LEMMA_COLUMNS`."""
        return bool(self.rows) and all(name in self.rows[0] for name in LEMMA_COLUMNS)

    def column(self, name: str) -> list[Any]:
        """Return the values of one column."""
        return [row[name] for row in self.rows]


def run_questions(
    questions: Sequence[Question],
    parts: PromptParts,
    ask: Ask,
    settings: Mapping[str, Any],
    output: Path,
    *,
    batch_size: int = 16,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Results:
    """Ask all questions, and write the answers to a file.

    Until all are there they are in `output` + ".partial", which a later call resumes.

    Args:
        questions: each with the phrasings to be used.
        parts: the text around the phrasings.
        ask: answers a batch of questions.
        settings: whatever else the answers depend on, as JSON; a file made with others is refused.
        output: new feather file, or one that an earlier run with the same settings has made.
        batch_size: questions at a time.
        on_progress: callback, called with the number of questions that are answered.

    Raises:
        UserError: the file is from other settings, damaged or cannot be written, another process writes it, or pyarrow
            is not installed.
    """
    check_positive("batch_size", batch_size)
    complete: dict[str, Any] = json.loads(json.dumps({**settings, "prompts": _fingerprint(questions, parts)}))
    if output.exists() and not is_overwriting():
        done = read_results(output)
        _refuse_others(output, done, complete)
        on_progress(len(done.rows))
        return done
    check_place(output, folder=False)
    with claimed(output):
        return _run(questions, parts, ask, complete, output, batch_size, on_progress)


def _run(
    questions: Sequence[Question], parts: PromptParts, ask: Ask, settings: dict[str, Any], output: Path,
    batch_size: int, on_progress: Callable[[int], None],
) -> Results:  # fmt: skip
    partial = output.with_name(output.name + ".partial")
    results = Results(rows=[], settings=settings, total=len(questions), seconds=0.0, passes=0)
    if partial.exists() and not is_overwriting():
        results = _read_partial(partial)
        _refuse_others(partial, results, settings)
    on_progress(len(results.rows))
    with _kept(partial) as keep:
        while len(results.rows) < len(questions):
            batch = questions[len(results.rows) : len(results.rows) + batch_size]
            results = _answer(results, batch, parts, ask)
            keep(results)
            on_progress(len(results.rows))
    partial.rename(output)
    return results


def _answer(results: Results, batch: Sequence[Question], parts: PromptParts, ask: Ask) -> Results:
    started = time.perf_counter()
    try:
        generations, passes = ask([[parts.segment(phrasing) for phrasing in question.phrasings] for question in batch])
    except UserError as error:
        names = " to ".join(dict.fromkeys((repr(batch[0].uuid), repr(batch[-1].uuid))))
        raise UserError(f"in the batch of {names}: {error}") from None
    rows = [
        {
            "uuid": question.uuid,
            "paraphrases": list(question.phrasings),
            "answers": list(question.answers),
            "prediction": parts.prediction(generation),
            "generation": generation,
        }
        for question, generation in zip(batch, generations, strict=True)
    ]
    return Results(
        rows=results.rows + rows,
        settings=results.settings,
        total=results.total,
        seconds=results.seconds + time.perf_counter() - started,
        passes=results.passes + passes,
    )


@contextmanager
def _kept(partial: Path) -> Iterator[Callable[[Results], None]]:
    """Yield a function that saves results now and then; the latest are saved however the block ends."""
    latest: Results | None = None
    saved_at = time.monotonic()

    def keep(results: Results) -> None:
        nonlocal latest, saved_at
        latest = results
        if time.monotonic() - saved_at > SAVED_EVERY:
            write_results(partial, results)
            saved_at, latest = time.monotonic(), None

    try:
        yield keep
    finally:
        if latest is not None:
            write_results(partial, latest)


def with_lemmas(results: Results) -> Results:
    """Return the results with `LEMMA_COLUMNS`, made anew if they are there."""
    predicted = lemmas(results.column("prediction"))
    gold = [lemmas(answers) for answers in results.column("answers")]
    rows = [
        {**row, **dict(zip(LEMMA_COLUMNS, pair, strict=True))}
        for row, *pair in zip(results.rows, predicted, gold, strict=True)
    ]
    return replace(results, rows=rows)


def _fingerprint(questions: Sequence[Question], parts: PromptParts) -> str:
    """Return a hash of every prompt and every answer that counts as right."""
    hashed = [
        [parts.prefix, parts.suffix, parts.form],
        *([question.uuid, question.phrasings, question.answers] for question in questions),
    ]
    return hashlib.sha256(json.dumps(hashed).encode()).hexdigest()[:16]


def _refuse_others(file: Path, there: Results, settings: Mapping[str, Any]) -> None:
    """Refuse a file of a run with other settings; it stays as it is."""
    names = [name for name in {**settings, **there.settings} if settings.get(name) != there.settings.get(name)]
    if not names:
        return
    # A difference in the prompts is named by the setting that made it, if there is one.
    name = next((name for name in names if name != "prompts"), "prompts")
    what = (
        "other questions or prompts"
        if name == "prompts"
        else f"{name} {there.settings.get(name)!r}, not {settings.get(name)!r}"
    )
    raise UserError(
        f"{str(file)!r} holds {len(there.rows)} answers of a run with {what}: give another output, or the settings of "
        "that run."
    )


# ---- files -----------------------------------------------------------------------------------------


def write_results(file: Path, results: Results) -> None:
    """Write a results file, whole or not at all; one of that name is replaced."""
    _need_pyarrow()
    import pyarrow
    from pyarrow import feather

    texts = pyarrow.string()
    types = {
        "uuid": texts, "paraphrases": pyarrow.list_(texts), "answers": pyarrow.list_(texts), "prediction": texts,
        "generation": texts, "predict_lemma": pyarrow.list_(texts),
        "answer_lemmas": pyarrow.list_(pyarrow.list_(texts)),
    }  # fmt: skip
    names = [name for name in types if name in COLUMNS or results.has_lemmas]
    about = {
        "settings": results.settings, "total": results.total, "seconds": results.seconds, "passes": results.passes
    }  # fmt: skip
    metadata = {ABOUT: json.dumps(about).encode(), CHECKSUM: _checksum(about, results.rows)}
    schema = pyarrow.schema([(name, types[name]) for name in names], metadata=metadata)
    table = pyarrow.table({name: results.column(name) for name in names}, schema=schema)
    with whole_file(file, replace=True) as partial:
        feather.write_feather(table, str(partial))


def read_results(file: Path) -> Results:
    """Read a results file, of `run_questions` or with the same columns from elsewhere.

    Raises:
        UserError: it is something else, a column is missing, or pyarrow is not installed.
    """
    table = _read_table(file)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        has = ", ".join(table.column_names) or "none"
        raise UserError(
            f"{str(file)!r} has no column {', '.join(map(repr, missing))} (it has {has}): give a results file of "
            f"`anyorder fuse run`, or one with the columns {', '.join(COLUMNS)}."
        )
    metadata = table.schema.metadata or {}
    try:
        rows = table.to_pylist()
        about = json.loads(metadata.get(ABOUT, b"{}"))
        whole = metadata.get(CHECKSUM) in (None, _checksum(about, rows))
    except ValueError:  # of JSON, UTF-8 or pyarrow
        whole = False
    if not whole:
        raise _damaged(file)
    return Results(
        rows=rows,
        settings=about.get("settings", {}),
        total=about.get("total", len(table)),
        seconds=about.get("seconds", 0.0),
        passes=about.get("passes", 0),
    )


def _read_partial(file: Path) -> Results:
    """Read a file of `write_results`; one that was changed since is refused."""
    try:
        results = read_results(file)
        sealed = CHECKSUM in (_read_table(file).schema.metadata or {})
    except UserError as error:
        raise _damaged(file) from error
    if not sealed:
        raise _damaged(file)
    return results


def _damaged(file: Path) -> UserError:
    return UserError(f"{str(file)!r} is damaged: delete it, and its questions are asked again.")


def _checksum(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bytes:
    return hashlib.sha256(json.dumps([about, rows], sort_keys=True).encode()).hexdigest().encode()


def _read_table(file: Path) -> pyarrow.Table:
    _need_pyarrow()
    import pyarrow
    from pyarrow import feather

    if not file.is_file():
        raise UserError(f"results file {str(file)!r} is not there: give a feather file of `anyorder fuse run`.")
    try:
        table = feather.read_table(str(file))
        table.validate(full=True)
        return table
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(
            f"{str(file)!r} is not a feather file ({why}): give a results file of `anyorder fuse run`."
        ) from None


def _need_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"results files need the package pyarrow, which is not installed: {INSTALL}.")
