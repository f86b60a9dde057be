"""Commands in several processes, as `torchrun` starts them: the first one prints, and all end with its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from anyorder.errors import UserError

SPLIT = ("generate", "fuse run", "evaluate likelihood", "evaluate tasks", "serve")
"""Commands that several processes run together, with --tensor_parallel."""

TRAININGS = ("pretrain", "sft")
"""Commands that several processes run together, each on its part of the samples."""


def number_of_processes() -> int:
    """Return the number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the only one, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def check_command(name: str) -> None:
    """Refuse to run a command in several processes that is made for one.

    Raises:
        UserError: see above.
    """
    number = number_of_processes()
    if number > 1 and name not in (*SPLIT, *TRAININGS):
        together = ", ".join((*SPLIT, *TRAININGS))
        raise UserError(
            f"{number} processes were started, but anyorder {name} runs in one: start it without torchrun ({together} "
            "run in several)."
        )


@contextmanager
def only_the_first_prints() -> Iterator[TextIO]:
    """Turn off the output of all processes but the first; provide the standard error that was there before."""
    before = sys.stdout, sys.stderr
    if is_first():
        yield sys.stderr
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield before[1]
        finally:
            sys.stdout, sys.stderr = before


def print_mistake(message: str, errors: TextIO) -> None:
    """Print the message of a mistake: once where all processes make it, else by the process that alone makes it."""
    if number_of_processes() == 1:
        print(f"error: {message}", file=errors)
        return
    from anyorder.parallel.processes import is_reported_elsewhere

    if is_first():
        print(f"error: {message}", file=errors, flush=True)
        is_reported_elsewhere(printed=True)
    elif not is_reported_elsewhere(printed=False):
        print(f"error: process {os.environ['RANK']}: {message}", file=errors, flush=True)
