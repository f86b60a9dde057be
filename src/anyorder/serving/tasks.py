"""What an engine is asked for: tasks that write, calls, and the commands by which its thread learns of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyorder.api.output import Finished, Output
from anyorder.serving.groups.sample import Sample

if TYPE_CHECKING:
    from anyorder.serving.engine import Engine

Item = TypeVar("Item")


class BusyError(Exception):
    """The queue is full.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after} seconds.")
        self.retry_after = retry_after


class ClosingError(Exception):
    """The engine takes no more tasks."""


class LateError(Exception):
    """A task took longer than it may."""


@dataclass(eq=False, kw_only=True)
class Task:
    """What one request has written.

    Args:
        size: number of samples.
        open: makes the samples, in the engine's thread.
        on_news: called in the engine's thread after each pass that wrote something, and at the end.
        number: of the task in its engine, given by `Engine.submit`.

    Attributes:
        samples: empty while the task waits.
        error: why the task ended early; None unless it did.
        done: set at the end.
        arrived, began, ended: seconds of `time.perf_counter`.
    """

    size: int
    open: Callable[[], Sequence[Sample]]
    on_news: Callable[[], None] = lambda: None
    number: int = -1
    samples: Sequence[Sample] = ()
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    arrived: float = 0.0
    began: float = 0.0
    ended: float = 0.0

    def __reduce__(self) -> Any:
        """Pickle what another process needs to write the same, where nobody waits for news."""
        return partial(Task, size=self.size, open=self.open, number=self.number), ()

    def finished(self) -> list[Finished]:
        """Wait for the end; return what each sample became.

        Raises:
            Exception: why the task ended early.
        """
        self.done.wait()
        if self.error is not None:
            raise self.error
        return [sample.finished(self.ended - self.began) for sample in self.samples]

    def outputs(self) -> list[Output]:
        """Return the same as `anyorder.generate` would for each sample."""
        return [sample.output(single=True) for sample in self.finished()]


class CancelledError(Exception):
    """A task was cancelled."""


@dataclass(eq=False)
class Call:
    """A function to be called between two passes.

    Args:
        number: of the call in its engine.
        function: to be called.
        future: of its result; may be cancelled by who waits for it.
    """

    number: int
    function: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)

    def __reduce__(self) -> Any:
        """Pickle what another process needs to call the same, where nobody waits for the result."""
        return Call, (self.number, self.function)

    def run(self) -> BaseException | None:
        """Call the function; return what it raised."""
        result, error = None, None
        try:
            result = self.function()
        except BaseException as raised:
            error = raised
        with suppress(InvalidStateError):  # cancelled meanwhile
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        return error


Command = Callable[["Engine"], None]
"""What other threads ask of the engine's thread; a method of `Engine` with its arguments, as a `partial`."""


class Commands:
    """The queue of what other threads ask for."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def put(self, command: Command) -> None:
        """Add a command, from any thread."""
        self._queue.put(command)

    def take(self, *, wait: bool) -> Sequence[Command]:
        """Take all commands that have come, in the engine's thread.

        Args:
            wait: for the first of them.
        """
        return drained(self._queue, wait=wait)

    def tolerate(self, error: BaseException) -> None:
        """Go on after a task or a call failed, which ends alone; may raise the error instead, which ends the engine."""


def drained(items: queue.SimpleQueue[Item], *, wait: bool, seconds: float | None = None) -> list[Item]:
    """Take all that is in a queue; wait for the first, where that is wanted, at most for so many seconds."""
    found: list[Item] = []
    with suppress(queue.Empty):
        found.append(items.get(block=wait, timeout=seconds))
        while True:
            found.append(items.get_nowait())
    return found
