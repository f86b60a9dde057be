"""Runs: what is in the file, whole at any moment, and gone on with only under the same settings."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pandas
import pytest

from anyorder.errors import UserError
from anyorder.evaluation import question_runs
from anyorder.evaluation.prompts import prompt_parts
from anyorder.evaluation.question_runs import (
    COLUMNS,
    Results,
    read_results,
    run_questions,
    with_lemmas,
    write_results,
)
from anyorder.evaluation.questions import Question
from anyorder.utils.files import claimed

QUESTIONS = [
    Question(uuid=f"u{number}", phrasings=(f"what is {number}?", f"{number} is?"), answers=(str(number), "it"))
    for number in range(7)
]
PARTS = prompt_parts("question")
SETTINGS = {"method": "attention", "indices": (0, 1), "shots": 0}


class Oracle:
    """Stands in for a network: knows that `what is N?` is N, and breaks when it has answered enough."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.batches: list[int] = []
        self.breaks_after = breaks_after

    def __call__(self, segments: list[list[str]]) -> tuple[list[str], int]:
        self.batches.append(len(segments))
        for first, second in segments:
            if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
                raise KeyboardInterrupt
            assert first.startswith("Q: what is ")
            assert second.endswith(" is?\n")
            self.asked.append(first)
        return [f" {first[11:-2]}\nQ: more" for first, _ in segments], 3


def run(output: Path, oracle: Oracle, settings: dict[str, Any] = SETTINGS, **options: Any) -> Results:
    return run_questions(options.pop("questions", QUESTIONS), PARTS, oracle, settings, output, **options)


def test_the_file_has_the_documented_columns(tmp_path: Path) -> None:
    file = tmp_path / "below" / "r.feather"
    progress: list[int] = []
    oracle = Oracle()
    results = run(file, oracle, batch_size=3, on_progress=progress.append)
    assert progress == [0, 3, 6, 7]
    assert oracle.batches == [3, 3, 1]
    table = pandas.read_feather(file)
    assert tuple(table.columns) == COLUMNS
    assert list(table["uuid"]) == [question.uuid for question in QUESTIONS]
    assert [tuple(texts) for texts in table["paraphrases"]] == [question.phrasings for question in QUESTIONS]
    assert [tuple(texts) for texts in table["answers"]] == [question.answers for question in QUESTIONS]
    assert list(table["prediction"]) == list("0123456")
    assert list(table["generation"]) == [f" {number}\nQ: more" for number in range(7)]
    assert read_results(file) == results
    assert (results.passes, results.total) == (9, 7)
    assert results.seconds > 0
    assert [entry.name for entry in file.parent.iterdir()] == ["r.feather"]


@pytest.mark.parametrize("often", [True, False], ids=["saved at once", "saved at the end"])
def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, often: bool) -> None:
    if often:
        monkeypatch.setattr(question_runs, "SAVED_EVERY", -1)
    whole = run(tmp_path / "whole.feather", Oracle(), batch_size=2)
    file = tmp_path / "r.feather"
    with pytest.raises(KeyboardInterrupt):
        run(file, Oracle(breaks_after=5), batch_size=2)
    assert not file.exists()
    partial = read_results(tmp_path / "r.feather.partial")
    assert partial.rows == whole.rows[:4]
    assert partial.total == 7
    with pytest.raises(KeyboardInterrupt):
        run(file, Oracle(breaks_after=0), batch_size=3)
    assert read_results(tmp_path / "r.feather.partial") == partial
    progress: list[int] = []
    second = Oracle()
    results = run(file, second, batch_size=2, on_progress=progress.append)
    assert results.rows == whole.rows
    assert results.passes == whole.passes
    assert progress == [4, 6, 7]
    assert len(second.asked) == 3
    assert not (tmp_path / "r.feather.partial").exists()
    # And a finished one has nothing left to do.
    idle = Oracle()
    assert run(file, idle) == read_results(file) == results
    assert idle.asked == []


def test_results_from_other_settings_are_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "r.feather"
    with pytest.raises(KeyboardInterrupt):
        run(file, Oracle(breaks_after=4), batch_size=2)
    partial = file.with_name("r.feather.partial")
    before = partial.read_bytes()
    with pytest.raises(UserError) as caught:
        run(file, Oracle(), SETTINGS | {"method": "max"})
    assert str(caught.value) == (
        f"{str(partial)!r} holds 4 answers of a run with method 'attention', not 'max': give another output, or the "
        "settings of that run."
    )
    with pytest.raises(UserError, match="holds 4 answers of a run with other questions or prompts: give another"):
        run(file, Oracle(), questions=QUESTIONS[1:])
    with pytest.raises(UserError, match="a run with extra None, not 1:"):
        run(file, Oracle(), SETTINGS | {"extra": 1})
    assert partial.read_bytes() == before
    run(file, Oracle())
    before = file.read_bytes()
    with pytest.raises(UserError, match="holds 7 answers of a run with shots 0, not 5"):
        run(file, Oracle(), SETTINGS | {"shots": 5})
    assert file.read_bytes() == before


def test_a_file_that_is_replaced_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import feather

    file = tmp_path / "r.feather"
    results = run(file, Oracle())
    before = file.read_bytes()

    def breaks(table: Any, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(feather, "write_feather", breaks)
    with pytest.raises(UserError, match=r"r\.feather' cannot be written \(the disk is full\)"):
        write_results(file, results)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_files_from_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "r.feather"
    columns: dict[str, list[Any]] = {
        "uuid": ["a"], "paraphrases": [["q"]], "answers": [["x"]], "prediction": ["x"], "generation": ["x\n"]
    }  # fmt: skip
    pandas.DataFrame(columns).to_feather(file)
    results = read_results(file)
    assert results.rows == [{name: values[0] for name, values in columns.items()}]
    assert (results.settings, results.total) == ({}, 1)
    pandas.DataFrame({"uuid": ["a"], "answer": ["x"]}).to_feather(file)
    with pytest.raises(
        UserError, match=r"has no column 'paraphrases', 'answers', .*it has uuid, answer.*: give a results"
    ):
        read_results(file)
    file.write_text("uuid,prediction\n")
    with pytest.raises(UserError, match=r"r.feather' is not a feather file .*: give a results file of"):
        read_results(file)
    with pytest.raises(UserError, match=r"results file .*nothing' is not there: give a feather file"):
        read_results(tmp_path / "nothing")


def test_mistakes_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle()
    with pytest.raises(UserError, match="batch_size is 0: give a whole number above 0"):
        run(tmp_path / "r.feather", oracle, batch_size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path / "file" / "r.feather", oracle)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"results files need the package pyarrow, .*: pip install 'anyorder\[fuse\]'"):
        read_results(tmp_path / "r.feather")
    assert oracle.asked == []


def test_lemmas_are_columns(tmp_path: Path) -> None:
    file = tmp_path / "r.feather"
    results = run(file, Oracle())
    assert not results.has_lemmas
    with_them = with_lemmas(with_lemmas(results))
    assert with_them.has_lemmas
    write_results(file, with_them)
    assert read_results(file) == with_them
    table = pandas.read_feather(file)
    assert tuple(table.columns) == (*COLUMNS, "predict_lemma", "answer_lemmas")
    assert [list(words) for words in table["predict_lemma"]] == [[number] for number in "0123456"]
    assert [list(words) for words in table["answer_lemmas"][3]] == [["3"], ["it"]]
    assert run(file, Oracle()) == with_them  # still of the same settings


def test_answers_in_a_damaged_file_are_not_taken_as_they_are(tmp_path: Path) -> None:
    """Each changed bit is either one that holds nothing, or refused in one sentence."""
    file, partial = tmp_path / "r.feather", tmp_path / "r.feather.partial"
    with pytest.raises(KeyboardInterrupt):
        run(file, Oracle(breaks_after=4), batch_size=2)
    content, whole = partial.read_bytes(), read_results(partial)
    source, said = random.Random(0), []
    for _ in range(400):
        at = source.randrange(len(content))
        partial.write_bytes(content[:at] + bytes([content[at] ^ 1 << source.randrange(8)]) + content[at + 1 :])
        try:
            found = question_runs._read_partial(partial)
        except UserError as error:
            said.append(str(error))
        else:
            assert found == whole
    assert len(said) > 200
    assert set(said) == {f"{str(partial)!r} is damaged: delete it, and its questions are asked again."}
    partial.write_bytes(content[:-1])
    with pytest.raises(UserError, match="is damaged: delete it"):
        run(file, Oracle())
    partial.write_bytes(content.replace(b"anyorder_checksum", b"anyorder_checksun"))
    with pytest.raises(UserError, match="is damaged: delete it"):
        run(file, Oracle())
    partial.write_bytes(content)
    assert len(run(file, Oracle()).rows) == 7
    changed = file.read_bytes().replace(b"u3", b"u4")
    if changed != file.read_bytes():  # finished files are checked as well
        file.write_bytes(changed)
        with pytest.raises(UserError, match="is damaged: delete it"):
            read_results(file)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with claimed(tmp_path / "r.feather"), pytest.raises(UserError, match=r"r\.feather' is being written by another"):
        run(tmp_path / "r.feather", Oracle())
