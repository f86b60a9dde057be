"""A network that is split or sharded computes and learns what the whole one does."""

from __future__ import annotations

import pytest

from tests.parallel.launch import on_processes
from tests.parallel.split import Case, cases, check


def test_two_processes_compute_and_learn_what_one_does() -> None:
    split = [Case(2, "tied"), Case(2, "norms of heads, biases", rows=True), Case(2, "experts")]
    on_processes(2, check, [*split, Case(1, "tied")])


@pytest.mark.slow
def test_two_processes() -> None:
    """Every network and every objective: split, with and without the rows between layers, and sharded."""
    on_processes(2, check, [*cases(2), *cases(2, rows=True), *cases(1)])


@pytest.mark.slow
def test_four_processes() -> None:
    """Every network and every objective in two groups of two; some split over four, and sharded."""
    names = ("tied", "experts")
    few = [Case(tensor, name, rows=rows) for name in names for tensor, rows in ((4, False), (4, True), (1, False))]
    on_processes(4, check, [*few, *cases(2)], 4)
