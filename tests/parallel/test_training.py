"""Trainings in several processes have the curve of one, and go on in another number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import on_processes
from tests.parallel.training import assert_same, several, trained

FSDP: dict[str, Any] = {"fsdp": True, "batch_size": 2}
SPLIT: dict[str, Any] = {"tensor_parallel": 2, "batch_size": 4}
"""On two processes; all trainings have 4 samples in a step."""


@pytest.mark.slow
def test_saved_on_two_resumed_on_four_and_one(tmp_path: Path) -> None:
    """Sharded, or split over two processes; then both, in two groups, or sharded over four, or whole."""

    def begin_with(target: str, source: str, step: int) -> None:
        """Copy the checkpoint of a step from one run to another."""
        name = f"checkpoint-{step}"
        shutil.copytree(tmp_path / source / name, tmp_path / target / name)

    on_processes(2, several, {"fsdp": FSDP, "split": SPLIT}, tmp_path)
    begin_with("both", "fsdp", 3)
    begin_with("sharded", "split", 3)
    both = {"tensor_parallel": 2, "fsdp": True, "batch_size": 2, "resume": True}
    on_processes(4, several, {"both": both, "sharded": {"fsdp": True, "batch_size": 1, "resume": True}}, tmp_path)
    begin_with("one after two", "split", 3)
    begin_with("one after four", "both", 6)
    one = trained(tmp_path / "one", batch_size=4)
    for run in ("fsdp", "split", "both", "sharded"):
        assert_same(json.loads((tmp_path / f"{run}.json").read_text()), one, run)
    for run in ("one after two", "one after four"):
        assert_same(trained(tmp_path / run, batch_size=4, resume=True), one, run)
    pickles = [file for file in tmp_path.rglob("*") if file.suffix in (".pt", ".pth", ".bin", ".distcp", ".metadata")]
    assert pickles == []
