"""The benchmark runs, prints its tables, and draws."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


def test_it_measures_and_draws(project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "costs" / "fusion.png"
    main = runpy.run_path(str(project_root / "benchmarks" / "fusion.py"))["main"]
    main(
        ["--size", "260K", "--phrasings", "2", "--prefix", "6", "--segment", "3", "--suffix", "1", "--new", "3",
         "--naive_new", "1", "--repeats", "1", "--against", "1", "3", "--output", str(picture), "--no_record"]
    )  # fmt: skip
    out = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == [
        "way", "fused", "one run", "ensemble here", "ensemble of separate runs", "masked, no cache", "naive",
        "phrasings", "1", "3",
    ]  # fmt: skip
    assert rows[1][2] == "1.0"
    assert all(float(cell) >= 0 for row in rows[-2:] for cell in row)
    assert picture.read_bytes().startswith(b"\x89PNG")
