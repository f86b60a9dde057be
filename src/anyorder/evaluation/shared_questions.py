"""Questions that several processes share out; the first one keeps the answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anyorder.errors import UserError
from anyorder.evaluation.question_runs import Ask
from anyorder.parallel import Processes

Answers = tuple[list[str], int] | UserError


@contextmanager
def leading(ask: Ask, processes: Processes) -> Iterator[Ask]:
    """Provide, in the first process, a function that answers each batch together with the others, which follow.

    Args:
        ask: answers questions in one process.
        processes: all of them.
    """

    def ask_all(segments: list[list[str]]) -> tuple[list[str], int]:
        processes.broadcast(segments)
        return _answer_together(ask, segments, processes)

    try:
        yield ask_all
    finally:
        processes.broadcast(None)


def follow(ask: Ask, processes: Processes) -> None:
    """Answer, in any other process, its share of each batch until the first one has no more.

    Raises:
        UserError: a process cannot answer its share; raised in all.
    """
    while (segments := processes.broadcast(None)) is not None:
        _answer_together(ask, segments, processes)


def _answer_together(ask: Ask, segments: list[list[str]], processes: Processes) -> tuple[list[str], int]:
    """Return the answers of a batch in its order, and the forward passes of all processes."""
    own = list(processes.own(segments))
    answers: Answers = ([], 0)
    try:
        if own:
            answers = ask(own)
    except UserError as error:  # so that no process waits for this one
        answers = error
    texts: list[list[str]] = []
    passes = 0
    for found in processes.shares(answers):
        if isinstance(found, UserError):
            raise found
        texts.append(found[0])
        passes += found[1]
    return processes.in_order(texts), passes
