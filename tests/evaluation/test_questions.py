"""Questions: phrasings picked, samples drawn, and the file format for sets of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyorder.errors import UserError
from anyorder.evaluation.questions import Question, QuestionSet, question_set, read_jsonl, to_json

EMMA = Question(
    uuid="q1", phrasings=("who wrote Emma?", "whose book is Emma?", "Emma is by?"), answers=("Jane Austen",)
)
TEXTS = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4).map(tuple)


def many(count: int) -> QuestionSet:
    return question_set(
        (Question(uuid=str(number), phrasings=(f"what is {number}?",), answers=("it",)) for number in range(count)),
        "many",
    )


def test_phrasings_are_picked_by_number_or_by_index() -> None:
    assert EMMA.pick() == EMMA
    assert EMMA.pick(2).phrasings == EMMA.phrasings[:2]
    assert EMMA.pick(indices=[2, 0]).phrasings == ("Emma is by?", "who wrote Emma?")
    assert EMMA.pick(indices=[1]).answers == EMMA.answers
    assert EMMA.pick(2, [1]).phrasings == EMMA.phrasings[1:2]


@pytest.mark.parametrize(
    ("count", "indices", "message"),
    [
        (4, None, "num_paraphrases is 4, but question 'q1' has 3 phrasings: give 1 to 3."),
        (0, None, "num_paraphrases is 0, but question 'q1' has 3 phrasings: give 1 to 3."),
        (None, [0, 3], "index 3 of indices is out of range, since question 'q1' has 3 phrasings: give 0 to 2."),
        (None, [-1], "index -1 of indices is out of range, since question 'q1' has 3 phrasings: give 0 to 2."),
        (None, [1, 1], "indices is 1,1: give at least one, each of them once."),
        (None, [], "indices is empty: give at least one, each of them once."),
        (2, [2], "index 2 of indices is out of range, since num_paraphrases is 2: give 0 to 1."),
    ],
)
def test_what_cannot_be_picked(count: int | None, indices: list[int] | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        EMMA.pick(count, indices)
    assert str(caught.value) == message


def test_samples_depend_on_the_seed_alone() -> None:
    everything = many(30)
    assert everything.sample(None, 1) == everything == everything.sample(30, 1)
    drawn = everything.sample(10, 1)
    assert drawn == everything.sample(10, 1) != everything.sample(10, 2)
    assert len(set(drawn.questions)) == 10
    assert set(drawn.questions) <= set(everything.questions)
    with pytest.raises(UserError, match="max_samples is 0: give a whole number above 0"):
        everything.sample(0, 1)


def test_examples_are_never_asked() -> None:
    everything = many(12)
    shots, others = everything.split_off(5, 42)
    assert len(shots) == 5
    assert shots == everything.split_off(5, 42)[0] != everything.split_off(5, 43)[0]
    assert others.questions == tuple(question for question in everything.questions if question not in shots)
    assert everything.split_off(0, 42) == ((), everything)
    with pytest.raises(UserError, match=r"shots is 12 for a set of 12 questions, .* give 0 to 11, or take"):
        everything.split_off(12, 42)


@given(
    st.lists(
        st.builds(Question, uuid=st.text(), phrasings=TEXTS, answers=TEXTS), min_size=1, unique_by=lambda q: q.uuid
    )
)
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, questions: list[Question]
) -> None:
    file = tmp_path_factory.mktemp("sets") / "set.jsonl"
    file.write_text("".join(to_json(question) + "\n" for question in questions), encoding="utf-8", newline="")
    assert read_jsonl(file).questions == tuple(questions)


def test_the_form_is_told_by_the_phrasings(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    masked = {"phrasings": ["Emma is by [MASK].", "[MASK] wrote Emma."], "answers": ["Austen"]}
    file.write_text(f"\n{json.dumps(masked)}\n")
    found = read_jsonl(file)
    assert found.form == "mask"
    assert found.questions[0].uuid == "2"  # the number of its line
    masked["phrasings"][0] = "Who wrote Emma?"
    file.write_text(json.dumps(masked))
    assert read_jsonl(file).form == "question"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "line 2 of FILE is not JSON (Expecting value): write one object in each line."),
        ("[1]", "line 2 of FILE holds [1]: write an object with phrasings and answers."),
        ('{"asked": "?", "answers": ["a"]}',
         "line 2 of FILE has no field 'phrasings' (its fields are asked, answers): add a list of at least one text."),
        ('{"phrasings": ["?"]}',
         "line 2 of FILE has no field 'answers' (its fields are phrasings): add a list of at least one text."),
        ('{"phrasings": [], "answers": ["a"]}',
         "line 2 of FILE has [] for 'phrasings': give a list of at least one text, none empty."),
        ('{"phrasings": "?", "answers": ["a"]}',
         "line 2 of FILE has '?' for 'phrasings': give a list of at least one text, none empty."),
        ('{"phrasings": ["?", " "], "answers": ["a"]}',
         "line 2 of FILE has ['?', ' '] for 'phrasings': give a list of at least one text, none empty."),
        ('{"uuid": "q1", "phrasings": ["?"], "answers": ["a"]}',
         "line 2 of FILE has the uuid 'q1', which line 1 has already: give each question its own."),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_the_remedy(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(f"{to_json(EMMA)}\n{line}\n")
    with pytest.raises(UserError) as caught:
        read_jsonl(file)
    assert str(caught.value) == message.replace("FILE", repr(str(file)))


def test_files_without_questions(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text("\n")
    with pytest.raises(UserError, match="has no questions: give a set with at least one"):
        read_jsonl(file)
    file.write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8 at byte 0: convert it to UTF-8"):
        read_jsonl(file)
