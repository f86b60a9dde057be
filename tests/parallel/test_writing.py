"""Several processes write what one does."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyorder
from anyorder.model.llama import Llama
from tests.model.networks import network
from tests.parallel.launch import on_processes
from tests.parallel.memory import read_by_parts
from tests.parallel.writing import everything, four


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    anyorder.save(network(vocab_size=64, hidden_size=32, head_dim=8), None, tmp_path / "network")
    on_processes(2, everything, tmp_path / "network")


@pytest.mark.slow
def test_reading_takes_the_memory_of_a_part(tmp_path: Path) -> None:
    anyorder.save(network(), None, tmp_path / "small")
    config = network().config
    layers = config.layers[:1] * 8
    large = config.replace(
        vocab_size=8000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64,
    )  # fmt: skip
    anyorder.save(Llama(large), None, tmp_path / "large")
    on_processes(2, read_by_parts, tmp_path / "small", tmp_path / "large")


@pytest.mark.slow
def test_four_processes_write_what_one_does() -> None:
    on_processes(4, four, 4)
