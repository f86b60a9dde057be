"""Several processes write what one does."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyorder
from tests.model.networks import network
from tests.parallel.launch import on_processes
from tests.parallel.writing import everything, four


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    anyorder.save(network(vocab_size=64, hidden_size=32, head_dim=8), None, tmp_path / "network")
    on_processes(2, everything, tmp_path / "network")


@pytest.mark.slow
def test_four_processes_write_what_one_does() -> None:
    on_processes(4, four, 4)
