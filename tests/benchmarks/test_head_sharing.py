"""The benchmark runs, prints a row for each number of groups, and draws."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


def test_it_measures_and_draws(project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "heads.png"
    main = runpy.run_path(str(project_root / "benchmarks" / "head_sharing.py"))["main"]
    main(
        ["--hidden", "32", "--layers", "1", "--heads", "4", "--batch", "2", "--prompt", "8", "--new", "2",
         "--repeats", "1", "--output", str(picture)]
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[2:-1]]
    assert [(row[0], row[1]) for row in rows] == [("4", "MHA"), ("2", "GQA"), ("1", "MQA")]
    assert rows[0][-1] == "1.00"
    assert all(float(row[-2]) > 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
