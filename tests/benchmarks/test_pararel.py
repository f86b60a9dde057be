"""The benchmark runs from data to table on a few facts, and asks in patterns that were not taught."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from anyorder.evaluation.questions import read_jsonl


@pytest.fixture
def pararel(tmp_path: Path) -> Path:
    """A relation with patterns enough, and one with too few."""
    for relation, count in (("P1", 9), ("P2", 7)):
        patterns = [{"pattern": f"[X] in way {number} is [Y]."} for number in range(count)]
        facts = [{"sub_label": f"Thing {n}", "obj_label": f"place {n}", "uuid": f"{relation}-{n}"} for n in range(6)]
        for folder, records in (("graphs_json", patterns), ("trex_lms_vocab", facts)):
            (tmp_path / folder).mkdir(exist_ok=True)
            text = "".join(json.dumps(record) + "\n" for record in records)
            (tmp_path / folder / f"{relation}.jsonl").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_it_teaches_some_patterns_and_asks_others(
    project_root: Path, pararel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = runpy.run_path(str(project_root / "benchmarks" / "pararel.py"))
    taught, asked = names["lessons"](pararel, 4, 0)
    assert [question.uuid for question in taught] == [question.uuid for question in asked]
    assert len(taught) == 4
    assert all(question.uuid.startswith("P1-") for question in taught)
    for learnt, question in zip(taught, asked, strict=True):
        assert (len(learnt.phrasings), len(question.phrasings)) == (3, 5)
        assert set(learnt.phrasings).isdisjoint(question.phrasings)
    output = pararel / "out"
    names["main"](
        [str(pararel), "--output", str(output), "--facts", "4", "--steps", "1", "--results", str(pararel / "r.json"),
         "--picture", str(pararel / "p.png")]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.startswith("4 facts; 1 steps, final loss ")
    assert "| attention, shared, 1/N | " in printed
    assert read_jsonl(output / "questions.jsonl").questions == tuple(asked)
    record = json.loads((pararel / "r.json").read_text())
    assert {line["phrasings"] for line in record["lines"]} == {1, 3, 5}
    assert (pararel / "p.png").read_bytes().startswith(b"\x89PNG")
