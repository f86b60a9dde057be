"""A split network computes what the whole one does."""

from __future__ import annotations

import pytest

from tests.objectives.cases import OBJECTIVES
from tests.parallel.launch import on_processes
from tests.parallel.split import NETWORKS, forward_and_steps, split_and_sharded


def test_two_processes_compute_and_learn_what_one_does() -> None:
    on_processes(2, forward_and_steps, ["tied", "norms of heads, biases", "experts"], ["permutation"])


@pytest.mark.slow
def test_every_network_and_objective() -> None:
    on_processes(2, forward_and_steps, list(NETWORKS), ["autoregressive"])
    on_processes(2, forward_and_steps, ["plain"], list(OBJECTIVES))


@pytest.mark.slow
def test_four_processes() -> None:
    on_processes(4, forward_and_steps, list(NETWORKS), ["permutation"], 4)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "tensor"), [(2, 1), (4, 2)])
def test_data_parallel_with_sharded_weights(processes: int, tensor: int) -> None:
    """Fully sharded over groups of processes, each of which shares the network."""
    on_processes(processes, split_and_sharded, tensor)
