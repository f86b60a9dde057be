"""Comparisons: the numbers in the table are those of the answers, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import anyorder.api.fuse
from anyorder.errors import UserError
from anyorder.evaluation.comparison import BEST, COMPARED, MEAN, Comparison, compare
from anyorder.evaluation.comparison_plot import draw
from anyorder.evaluation.prompts import prompt_parts
from anyorder.evaluation.protocol import Method
from anyorder.evaluation.question_runs import read_results
from anyorder.evaluation.questions import Question

PARTS = prompt_parts("question")
QUESTIONS = [
    Question(uuid=f"u{n}", phrasings=(f"{n} first?", f"{n} second?", f"{n} third?"), answers=("red car", "tram"))
    for n in range(8)
]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Knows every first phrasing, even-numbered second ones, and no third; fused, at least one known suffices.

    Gives the method and the number of segments of each question asked.
    """
    asked: list[tuple[str, int]] = []

    def knows(segment: str) -> bool:
        return "first" in segment or ("second" in segment and int(segment.split()[1]) % 2 == 0)

    def fuse(model: Any, tokenizer: Any, phrasings: list[list[str]], *, method: str, **options: Any) -> SimpleNamespace:
        texts = []
        for segments in phrasings:
            asked.append((method, len(segments)))
            texts.append(" Red cars\n" if any(map(knows, segments)) else f" {segments[0][3:]}")
        return SimpleNamespace(text=texts, passes=1)

    monkeypatch.setattr(anyorder.api.fuse, "fuse", fuse)
    return asked


def compared(folder: Path, **options: Any) -> Comparison:
    methods = [Method(name=method) for method in ("logit-mean", "contrast", "attention", "concatenation")]
    return compare(None, None, QUESTIONS, PARTS, {"model": "m"}, folder, **{"methods": methods, **options})


def test_every_line_is_what_was_answered(tmp_path: Path, engine: list[tuple[str, int]]) -> None:
    comparison = compared(tmp_path / "c")
    lines = {(line.name, line.phrasings): line for line in comparison.lines}
    fused = ("logit-mean", "contrast", "attention, shared, 1/N", "concatenation")
    assert set(lines) == {
        (MEAN, 1), ("contrast", 1), *((name, count) for name in (MEAN, BEST, *fused) for count in (2, 3))
    }  # fmt: skip
    assert lines[MEAN, 1].lemma.mean == 1
    assert lines[MEAN, 2].lemma.mean == pytest.approx((1 + 0.5) / 2)
    assert lines[MEAN, 3].lemma.mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert lines[BEST, 3].lemma.mean == 1
    for name in fused:
        assert lines[name, 3].lemma.mean == 1
        assert lines[name, 3].exact.mean == 0  # "Red cars" is no "red car"
        assert lines[name, 3].f1.mean == pytest.approx(0.5)
        assert lines[name, 3].gain.mean == pytest.approx(0.5)
        assert lines[name, 3].gain.low > 0
    # Of three phrasings, the first two agree for even questions, and no others.
    agreed = {count: value.mean for count, value in comparison.agreement.items()}
    assert agreed == {2: 0.5, 3: pytest.approx(1 / 6)}
    assert lines[BEST, 3].seconds == pytest.approx(3 * lines[MEAN, 3].seconds)
    # Each single phrasing is asked once, however many counts there are.
    assert engine.count(("attention", 1)) == 8 * 3 + 8 * 2  # the latter are concatenated
    assert engine.count(("contrast", 1)) == engine.count(("contrast", 3)) == engine.count(("logit-mean", 2)) == 8


def test_what_is_there_is_not_asked_again(tmp_path: Path, engine: list[tuple[str, int]]) -> None:
    first = compared(tmp_path / "c", counts=[3])
    assert len(read_results(tmp_path / "c" / "attention-shared-1N-3.feather").rows) == 8
    (tmp_path / "c" / "contrast-3.feather").unlink()
    engine.clear()
    second = compared(tmp_path / "c", counts=[3])
    assert engine == [("contrast", 3)] * 8
    assert [line.lemma for line in second.lines] == [line.lemma for line in first.lines]
    with pytest.raises(UserError, match="holds 24 answers of a run with model 'm', not 'other'"):
        compare(None, None, QUESTIONS, PARTS, {"model": "other"}, tmp_path / "c", counts=[3])


def test_the_table_has_a_line_for_each_way(tmp_path: Path, engine: list[tuple[str, int]]) -> None:
    comparison = compared(tmp_path / "c", methods=COMPARED)
    head, rule, *rows = comparison.markdown().splitlines()
    assert head == "| 3 phrasings | right, % | against a single one | exact, % | token F1, % | time |"
    assert {row.count("|") for row in (head, rule, *rows)} == {7}
    assert [row.split(" | ")[0][2:] for row in rows] == [MEAN, BEST, *(other.label for other in COMPARED[1:])]
    assert rows[0].startswith(f"| {MEAN} | 50.0 [41.7, 58.3] |  | 0.0 | 25.0 | 1.0 |") or "50.0 [" in rows[0]
    assert "| +50.0 [+41.7, +58.3] |" in rows[3] or "+50.0 [+" in rows[3]
    assert json.loads(json.dumps(comparison.to_json()))["lines"][0]["name"] == MEAN
    draw(comparison, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_cost_nothing(tmp_path: Path, engine: list[tuple[str, int]]) -> None:
    with pytest.raises(UserError, match="counts has 4, but the questions have 3 phrasings: give 1 to 3"):
        compared(tmp_path / "c", counts=[1, 4])
    assert engine == []


def test_ways_have_names_of_their_own() -> None:
    assert COMPARED[0] == Method(name="single")
    assert len({method.label for method in COMPARED}) == len(COMPARED)
