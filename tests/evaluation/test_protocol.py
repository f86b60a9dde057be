"""Protocols: which questions and examples are taken, and what reaches the engine for each method."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import anyorder.api.fuse
from anyorder.decoding.fusion.method import METHODS
from anyorder.errors import UserError
from anyorder.evaluation.prompts import prompt_parts
from anyorder.evaluation.protocol import RUN_METHODS, Method, Protocol, asker, one_by_one
from anyorder.evaluation.questions import Question, to_json


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Ten questions, of which every other one has five phrasings, the rest three."""
    questions = [
        Question(
            uuid=f"u{number}",
            phrasings=tuple(f"{number}, way {way}?" for way in range(5 if number % 2 else 3)),
            answers=(f"answer {number}",),
        )
        for number in range(10)
    ]
    (tmp_path / "set.jsonl").write_text("".join(to_json(question) + "\n" for question in questions))
    return str(tmp_path / "set.jsonl")


def test_examples_and_questions_are_drawn_once_and_for_all(dataset: str) -> None:
    drawn = Protocol(dataset=dataset, num_paraphrases=3).draw()
    assert len(drawn.shots) == len(drawn.questions) == 5
    names = [question.uuid for question in (*drawn.shots, *drawn.questions)]
    assert sorted(names) == [f"u{number}" for number in range(10)]
    assert all(len(question.phrasings) == 3 for question in drawn.questions)
    assert drawn == Protocol(dataset=dataset, num_paraphrases=3).draw()
    assert drawn.shots != Protocol(dataset=dataset, num_paraphrases=3, seed=1).draw().shots


def test_questions_with_too_few_phrasings_are_left_out(dataset: str) -> None:
    drawn = Protocol(dataset=dataset, shots=0).draw()
    assert [question.uuid for question in drawn.questions] == ["u1", "u3", "u5", "u7", "u9"]
    assert all(len(question.phrasings) == 5 for question in drawn.questions)
    for indices, count in (((0, 3), 5), ((2, 1), 10)):
        drawn = Protocol(dataset=dataset, indices=indices, shots=0).draw()
        assert len(drawn.questions) == count
        assert drawn.questions[-1].phrasings == tuple(f"9, way {index}?" for index in indices)
    drawn = Protocol(dataset=dataset, indices=(0, 1), num_paraphrases=4, shots=0, max_samples=2).draw()
    assert [len(question.phrasings) for question in drawn.questions] == [2, 2]


def test_examples_may_come_from_another_set(dataset: str, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(to_json(Question(uuid=n, phrasings=(n,), answers=(n,))) + "\n" for n in "abc"))
    protocol = Protocol(dataset=dataset, shots_from=str(other), shots=2, num_paraphrases=1)
    drawn = protocol.draw()
    assert {shot.uuid for shot in drawn.shots} < {"a", "b", "c"}
    assert len(drawn.questions) == 10
    assert protocol.parts(drawn, None) == prompt_parts("question", drawn.shots)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": (0, 9)}, "no question of .* has 10 phrasings \\(the most is 5\\): ask for fewer, or let"),
        ({"indices": (-1,)}, "index -1 of indices is out of range, since question 'u0' has 3 phrasings: give 0 to 2"),
        ({"indices": (3,), "num_paraphrases": 2}, "index 3 of indices is out of range, since num_paraphrases is 2"),
        ({"indices": ()}, "indices is empty: give at least one"),
        ({"num_paraphrases": 0}, "num_paraphrases is 0, but question"),
        ({"num_paraphrases": 3, "shots": 10}, "shots is 10 for a set of 10 questions"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number above 0"),
        ({"shots": -1}, "shots is -1: give 0, or a whole number above it"),
    ],
)
def test_mistakes(dataset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Protocol(**{"dataset": dataset, "shots": 0, **options}).draw()


def test_one_by_one() -> None:
    first, second = one_by_one([Question(uuid="u", phrasings=("a", "b"), answers=("x",))])
    assert (first.phrasings, second.phrasings) == (("a",), ("b",))
    assert first.uuid == second.uuid == "u"
    assert second.answers == ("x",)


@pytest.mark.parametrize("method", RUN_METHODS)
def test_what_reaches_the_engine(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def fuse(model: Any, tokenizer: Any, phrasings: list[list[str]], **options: Any) -> SimpleNamespace:
        told.update(options, model=model, tokenizer=tokenizer, phrasings=phrasings)
        return SimpleNamespace(text=[" x"] * len(phrasings), passes=7)

    monkeypatch.setattr(anyorder.api.fuse, "fuse", fuse)
    parts = prompt_parts("question")
    segments = [["Q: a?\n", "Q: b?\n"], ["Q: c?\n"]]
    joined = method in ("single", "concatenation")
    weighed: dict[str, Any] = {} if joined else {"weights": "confidence", "keep": 2}
    ask = asker(
        "M", "T", parts, Method(name=method, positions="spread", correction="none", **weighed), max_new_tokens=4
    )
    assert ask(segments) == ([" x", " x"], 7)
    assert told == {
        "model": "M", "tokenizer": "T", "prefix": parts.prefix, "suffix": parts.suffix, "positions": "spread",
        "correction": "none", "max_new_tokens": 4, "stop": "\n",
        "method": "attention" if joined else method, "weights": weighed.get("weights"), "keep": weighed.get("keep"),
        "phrasings": [["Q: a?\nQ: b?\n"], ["Q: c?\n"]] if joined else segments,
    }  # fmt: skip


def test_every_method_of_the_engine_can_be_run() -> None:
    assert set(METHODS) < set(RUN_METHODS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mean"}, "method is 'mean': choose one of single, concatenation, attention"),
        ({"positions": "left"}, "positions is 'left': choose one of shared, running"),
        ({"correction": "2/N"}, "correction is '2/N': choose one of 1/N"),
        ({"weights": "length"}, "weights is 'length': choose one of confidence, likelihood"),
        ({"name": "single", "keep": 2}, "keep is 2 beside method 'single', which fuses nothing: leave it out"),
    ],
)
def test_ways_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Method(**options)
