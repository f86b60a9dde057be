"""The benchmark runs, and its candidates have equally many active weights."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_it_measures(project_root: Path) -> None:
    module = runpy.run_path(str(project_root / "benchmarks" / "experts.py"))
    sizes = ["--hidden", "16", "--width", "8", "--experts", "4", "--batch", "2", "--length", "4", "--repeats", "1"]
    lines = module["main"](sizes)
    assert [(rows, ratio) for rows, name, _, ratio in lines if name == module["DENSE"]] == [("2 x 4", 1), ("1 x 1", 1)]
    assert len(lines) == 8
    layers = module["layers"](module["_options"](sizes))
    dense, experts = (
        sum(weight.numel() for weight in layers[name].parameters()) for name in (module["DENSE"], "experts")
    )
    assert experts - 4 * 16 == dense * 4 / 2
