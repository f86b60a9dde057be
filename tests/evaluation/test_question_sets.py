"""Published sets: small copies of each form, and the real ones where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from anyorder.errors import UserError
from anyorder.evaluation.question_sets import pararel_patterns, read_questions
from anyorder.evaluation.questions import Question, to_json


def lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def pararel(tmp_path: Path) -> Path:
    """Two relations: P1 with three openings of four patterns, P2 with one of two."""
    patterns = {
        "P1": ["[X] died in [Y] .", "[Y] is where [X] died.", "[X] passed away in [Y]", "[X] died in [Y].",
               "In [Y], [X] fell", "[X]'s life ended in [Y]!"],
        "P2": ["[X] plays [Y]", "[Y] player [X]"],
    }  # fmt: skip
    facts = {
        "P1": [("Ada", "London", "u1"), ("Alan", "Wilmslow", "u2"), ("Ada", "Marylebone", "u3"),
               ("Ada", "London", "u4")],
        "P2": [("Clara", "piano", "u5")],
    }  # fmt: skip
    for relation in patterns:
        lines(tmp_path / "graphs_json" / f"{relation}.jsonl", [{"pattern": text} for text in patterns[relation]])
        records = [{"sub_label": sub, "obj_label": obj, "uuid": uuid} for sub, obj, uuid in facts[relation]]
        lines(tmp_path / "trex_lms_vocab" / f"{relation}.jsonl", records)
    return tmp_path


def test_openings_of_pararel(pararel: Path) -> None:
    found = read_questions(pararel)
    assert found.form == "opening"
    assert found.questions == (
        Question(
            uuid="u1", phrasings=("Ada died in", "Ada passed away in", "Ada's life ended in"),
            answers=("London", "Marylebone"),
        ),
        Question(
            uuid="u2", phrasings=("Alan died in", "Alan passed away in", "Alan's life ended in"), answers=("Wilmslow",)
        ),
        Question(uuid="u5", phrasings=("Clara plays",), answers=("piano",)),
    )  # fmt: skip
    assert {question.uuid for question in read_questions(pararel, min_phrasings=2).questions} == {"u1", "u2"}
    assert [question.uuid for question in read_questions(pararel, relations=["P2"]).questions] == ["u5"]


def test_all_patterns_of_pararel_with_a_mask(pararel: Path) -> None:
    found = read_questions(str(pararel), form="mask", min_phrasings=5)
    assert found.form == "mask"
    assert found.questions[0].phrasings == (
        "Ada died in [MASK] .", "[MASK] is where Ada died.", "Ada passed away in [MASK]", "Ada died in [MASK].",
        "In [MASK], Ada fell", "Ada's life ended in [MASK]!",
    )  # fmt: skip


def test_mistakes_with_pararel(pararel: Path) -> None:
    with pytest.raises(UserError, match=r"relation 'P9' is not in .*: give one of P1, P2"):
        read_questions(pararel, relations=["P9"])
    with pytest.raises(
        UserError, match=r"no relation .* has 4 patterns of the form 'opening' \(the most is 3\): ask for fewer"
    ):
        read_questions(pararel, min_phrasings=4)
    with pytest.raises(UserError, match="form is 'question', but PARAREL has sentences"):
        read_questions(pararel, form="question")
    with pytest.raises(UserError, match="form is 'cloze': give one of question, mask, opening"):
        read_questions(pararel, form="cloze")
    lines(pararel / "trex_lms_vocab" / "P2.jsonl", [{"uuid": "u", "sub_label": "Clara"}])
    with pytest.raises(UserError, match=r"line 1 of .*P2.jsonl' has no field 'obj_label'"):
        read_questions(pararel)
    (pararel / "trex_lms_vocab" / "P2.jsonl").unlink()
    with pytest.raises(UserError, match=r"P2.jsonl' is not there, but PARAREL has it: fetch the data again"):
        read_questions(pararel)


def test_the_real_pararel(shared_data: Path) -> None:
    folder = shared_data / "pararel"
    found = read_questions(folder, min_phrasings=8)
    counts = {len(question.phrasings) for question in found.questions}
    assert min(counts) == 8
    assert len({question.uuid for question in found.questions}) == len(found.questions) > 4000
    assert len(pararel_patterns(folder, "P495", "opening")) == 17
    for question in found.questions:
        assert all("[" not in phrasing and phrasing == phrasing.strip() for phrasing in question.phrasings)


def test_web_questions(tmp_path: Path) -> None:
    records = [{"qId": "wqs1", "qText": "who wrote emma?", "answers": ["Jane Austen", "Austen"]}]
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "test.json").write_text(json.dumps(records))
    expected = (Question(uuid="wqs1", phrasings=("who wrote emma?",), answers=("Jane Austen", "Austen")),)
    for source in (tmp_path, tmp_path / "main" / "test.json"):
        assert read_questions(source).questions == expected
    with pytest.raises(UserError, match=r"split is 'train', which .*main' does not have: give one of test"):
        read_questions(tmp_path, split="train")
    with pytest.raises(
        UserError, match=r"no question .* has 2 phrasings .*or let `anyorder data paraphrase` write more"
    ):
        read_questions(tmp_path, min_phrasings=2)
    with pytest.raises(UserError, match=r"relations is P1 for .*, which is not PARAREL: leave it out"):
        read_questions(tmp_path, relations=["P1"])
    (tmp_path / "main" / "test.json").write_text('[{"qText": "who?", "answers": ["he"]}]')
    with pytest.raises(UserError, match=r"question 1 of .* has no field 'qId'"):
        read_questions(tmp_path)


def test_the_real_web_questions(shared_data: Path) -> None:
    folder = shared_data / "webquestions"
    assert len(read_questions(folder).questions) == 2032
    assert len(read_questions(folder, split="trainmodel").questions) == 2834


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    question = Question(uuid="a", phrasings=("[MASK] wrote Emma.", "Emma is by [MASK]."), answers=("Austen",))
    (tmp_path / "set.jsonl").write_text(to_json(question))
    assert read_questions(tmp_path / "set.jsonl").form == "mask"
    assert read_questions(tmp_path / "set.jsonl", min_phrasings=2).questions == (question,)
    assert read_questions(tmp_path / "set.jsonl", form="question").form == "question"


TABLES: dict[str, tuple[dict[str, list[Any]], Question, str]] = {
    "WebQA": (
        {"question": ["who?"], "paraphrase1": ["which one?"], "paraphrase2": [""], "answers": [["he"]]},
        Question(uuid="0", phrasings=("who?", "which one?"), answers=("he",)),
        "question",
    ),
    "WebQA with names": (
        {"uuid": ["w"], "question": ["who?"], "paraphrase10": ["d"], "paraphrase2": ["c"], "paraphrase0": ["who?"],
         "answers": [["he"]]},
        Question(uuid="w", phrasings=("who?", "c", "d"), answers=("he",)),
        "question",
    ),
    "MyriadLAMA": (
        {"uuid": ["m", "n", "m"], "sub_ent": ["Paris", "Rome", "Paris"], "is_manual": [False, True, True],
         "template": ["[X], capital of [Y]", "[X] of [Y]", "[X] is the capital of [Y]."],
         "obj_aliases": [["France"], ["Italy"], ["France"]]},
        Question(uuid="m", phrasings=("Paris is the capital of [MASK].", "Paris, capital of [MASK]"),
                 answers=("France",)),
        "mask",
    ),
    "MyriadLAMA, prepared": (
        {"uuid": ["m"], "manual_paraphrases": [["a [MASK]"]], "auto_paraphrases": [["b [MASK]", "c [MASK]"]],
         "answers": [["x", "y"]]},
        Question(uuid="m", phrasings=("a [MASK]", "b [MASK]", "c [MASK]"), answers=("x", "y")),
        "mask",
    ),
    "the format of one's own": (
        {"phrasings": [["a", "b"]], "answers": [["x"]]},
        Question(uuid="0", phrasings=("a", "b"), answers=("x",)),
        "question",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, tmp_path: Path) -> None:
    columns, expected, form = TABLES[name]
    table = datasets.Dataset.from_dict(columns)
    table.save_to_disk(tmp_path / "folder")
    table.to_parquet(tmp_path / "file.parquet")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "splits")
    for source in ("folder", "file.parquet", "splits"):
        found = read_questions(tmp_path / source)
        assert found.questions[0] == expected
        assert found.form == form
        assert len(found.questions) == len(set(columns.get("uuid", ["0"])))
    with pytest.raises(UserError, match=r"split is 'dev', which .* does not have: give one of train, test"):
        read_questions(tmp_path / "splits", split="dev")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "answers": [["x"]]}, "has no column 'question' (it has text, answers): give a set with"),
        ({"question": ["a"]}, "has no column 'answers' (it has question): give a set with the columns phrasings"),
        ({"uuid": ["a"], "template": ["t"]}, "has no column 'sub_ent', 'obj_aliases' (it has uuid, template): give"),
        (
            {"uuid": ["a"], "manual_paraphrases": [["t"]], "answers": [["x"]]},
            "has no column 'auto_paraphrases' (it has",
        ),
        ({"uuid": ["a", "a"], "question": ["q", "r"], "answers": [["x"], ["y"]]}, "has the uuid 'a' more than once:"),
        ({"question": ["q"], "answers": [["", " "]]}, "has no answer: add one, or leave it out."),
        ({"question": [" "], "answers": [["x"]]}, "has no phrasing: leave it out."),
    ],
)
def test_columns_that_are_missing_are_named(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "folder")
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / "folder")
    assert message in str(caught.value)


@pytest.mark.parametrize("source", ["nothing", "nothing.jsonl", "no body/here", "nobody/nothing-here"])
def test_nothing_is_there(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"dataset is '{source}', which cannot be read \(.*\): give a .jsonl file, the"
    ):
        read_questions(source)
