"""The benchmark runs, and its XLNet is asked for the same thing as ours."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import torch


def test_it_measures(project_root: Path, tmp_path: Path) -> None:
    module = runpy.run_path(str(project_root / "benchmarks" / "objectives.py"))
    output = tmp_path / "objectives.json"
    module["main"](
        ["--hidden", "12", "--layers", "1", "--heads", "2", "--vocabulary", "50", "--length", "8", "--batch", "2",
         "--repeats", "1", "--output", str(output)]
    )  # fmt: skip
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 * 7
    assert [row["ratio"] for row in rows if row["step"] == "left to right"] == [1.0, 1.0]


def test_xlnets_masks_are_those_of_the_query_stream(project_root: Path) -> None:
    """XLNet adds the row itself for its content stream; 1 hides."""
    module = runpy.run_path(str(project_root / "benchmarks" / "objectives.py"))
    hidden, mapping = module["xlnet_masks"](torch.tensor([[2, 0, 1]]), 2)
    assert hidden.tolist() == [[[1, 1, 0], [0, 1, 0], [1, 1, 1]]]
    assert mapping.tolist() == [[[1, 0, 0], [0, 1, 0]]]
