"""A split network computes what the whole one does."""

from __future__ import annotations

from tests.parallel.launch import on_processes
from tests.parallel.split import NETWORKS, forward_and_steps


def test_two_processes_compute_and_learn_what_one_does() -> None:
    on_processes(2, forward_and_steps, list(NETWORKS), ["autoregressive"])
