"""A queue of tasks, and one thread that owns the network and runs them, forward pass by forward pass.

Between two passes tasks begin, end, are cancelled and run out of time. Tasks begin in the order in which they came.
Groups take turns, one pass each, so no task waits for another one to end as long as there is room for its samples.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from anyorder.api.output import Finished, Output
from anyorder.errors import UserError
from anyorder.serving.groups.group import Group
from anyorder.serving.groups.sample import Sample
from anyorder.utils.annotations import check_fields

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of an engine.

    Attributes:
        running: samples that are written at a time.
        queued: tasks that wait for room.
        seconds: from the arrival of a task to its end.

    Raises:
        UserError: one is not above 0.
    """

    running: int = 16
    queued: int = 64
    seconds: float = 600.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("running", "queued", "seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}: give a number above 0.")


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

    Attributes:
        samples: empty while the task waits.
        error: why the task ended early; None unless it did.
        done: set at the end.
        arrived, began, ended: seconds of `time.perf_counter`.
    """

    size: int
    open: Callable[[], Sequence[Sample]]
    on_news: Callable[[], None] = lambda: None
    samples: Sequence[Sample] = ()
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    arrived: float = 0.0
    began: float = 0.0
    ended: float = 0.0

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


@dataclass
class Counts:
    """What an engine has done so far."""

    passes: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


class Engine:
    """Runs tasks in a thread of its own, which starts with the first one.

    Args:
        limits: bounds.

    Attributes:
        counts: what was done so far.
        error: why the thread ended; None unless it did by an error of its own.
    """

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        self.counts = Counts()
        self.error: BaseException | None = None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls: deque[Callable[[], None]] = deque()
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []
        self._groups: dict[Hashable, Group] = {}
        self._task_of: dict[Sample, Task] = {}
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ---- from any thread -------------------------------------------------------------------------------

    def submit(self, task: Task) -> Task:
        """Queue a task.

        Raises:
            BusyError: the queue is full.
            ClosingError: the engine is being closed, or its thread has ended.
            UserError: the task has more samples than can ever run.
        """
        if task.size > self.limits.running:
            raise UserError(
                f"the request has {task.size} texts to write, and at most {self.limits.running} are written at a "
                "time: ask for fewer, or split it."
            )
        with self._lock:
            if self._closing or self.error is not None:
                raise ClosingError("the server is shutting down.")
            if len(self._waiting) >= self.limits.queued:
                raise BusyError(self._retry_after())
            task.arrived = time.perf_counter()
            self._waiting.append(task)
            if not self._thread.is_alive():
                self._thread.start()
        self._commands.put(_wake)
        return task

    def cancel(self, task: Task) -> None:
        """End a task before the next pass, if it has not ended."""
        self._commands.put(lambda: self._end(task, CancelledError("the request was cancelled.")))

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function in the engine's thread, between two passes; one that takes long calls `breathe` at times."""
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        with self._lock:
            if self._closing or self.error is not None:
                raise ClosingError("the server is shutting down.")
            if not self._thread.is_alive():
                self._thread.start()
        self._commands.put(lambda: self._calls.append(run))
        return future

    def breathe(self) -> None:
        """Run a pass of each group: for functions of `call`, of which the next one waits for the end of this."""
        self._obey(wait=False)
        self._turn()

    def close(self, *, drain: bool = True, seconds: float | None = None) -> None:
        """Take no more tasks, and wait for the end.

        Args:
            drain: write what has come so far to its end; otherwise cancel it.
            seconds: to wait at most; what is not complete then is cancelled. As long as it takes unless given.
        """
        with self._lock:
            self._closing = True
        if not self._thread.is_alive():
            return
        if not drain:
            self._commands.put(self._cancel_all)
        self._commands.put(_wake)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._commands.put(self._cancel_all)
            self._thread.join()

    @property
    def running(self) -> int:
        """Samples that are being written."""
        return len(self._task_of)

    @property
    def waiting(self) -> int:
        """Tasks that wait for room."""
        return len(self._waiting)

    def _retry_after(self) -> int:
        """Return the seconds that the oldest of the running tasks has taken: a guess at when there is room again."""
        ages = [time.perf_counter() - task.began for task in self._running]
        return max(1, round(max(ages, default=1.0)))

    # ---- in the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._obey():
                self._turn()
                if self._calls:
                    self._calls.popleft()()
        except BaseException as error:
            logger.exception("the engine has ended")
            with self._lock:
                self.error = error
        finally:
            for task in [*self._waiting, *self._running]:
                self._end(task, self.error or ClosingError("the server is shutting down."))

    def _turn(self) -> None:
        """Begin the tasks for which there is room, and run a pass of each group."""
        self._begin()
        for kind, group in list(self._groups.items()):
            if group.samples:
                self._pass(kind, group)
                self._obey(wait=False)
                self._begin()
        self._end_late()

    def _obey(self, *, wait: bool = True) -> bool:
        """Do what other threads ask for; wait for it where nothing runs. Return False at the end of all work."""
        while True:
            idle = wait and not (self._running or self._waiting or self._calls)
            if idle and self._closing and self._commands.empty():
                return False
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            command()

    def _begin(self) -> None:
        """Begin the tasks for which there is room, first come, first served."""
        while self._waiting and self.running + self._waiting[0].size <= self.limits.running:
            with self._lock:
                task = self._waiting.popleft()
            task.began = time.perf_counter()
            self._running.append(task)
            try:
                samples = task.open()
            except Exception as error:
                self._end(task, error)
                continue
            task.samples = samples
            for sample in samples:
                group = self._groups.get(sample.kind)
                if group is None or not group.is_open:
                    group = self._groups[sample.kind] = sample.new_group()
                group.join([sample])
                self._task_of[sample] = task
                self.counts.prompt_tokens += sum(token_id >= 0 for token_id in sample.prompt)

    def _pass(self, kind: Hashable, group: Group) -> None:
        before = group.passes
        try:
            errors = group.run_pass()
        except Exception as error:
            logger.debug("a group failed", exc_info=True)
            self._groups.pop(kind, None)
            for task in {self._task_of[sample]: None for sample in group.samples}:
                self._end(task, error)
            return
        self.counts.passes += group.passes - before
        news: dict[Task, BaseException | None] = {}
        for sample, problem in errors.items():
            task = self._task_of[sample]
            news[task] = news.get(task) or problem
            if sample.steps:
                self.counts.tokens += len(sample.steps[-1].written)
            if sample.stopped or problem is not None:
                del self._task_of[sample]
        if not group.samples:
            self._groups.pop(kind, None)
        for task, failure in news.items():
            if failure is not None or all(sample.stopped for sample in task.samples):
                self._end(task, failure)
            else:
                task.on_news()

    def _end(self, task: Task, error: BaseException | None) -> None:
        if task.done.is_set():
            return
        for sample in task.samples:
            if sample in self._task_of:
                del self._task_of[sample]
                group = self._groups.get(sample.kind)
                if group is not None and sample in group.samples:
                    group.leave(sample)
                    if not group.samples:
                        del self._groups[sample.kind]
        with self._lock:
            if task in self._waiting:
                self._waiting.remove(task)
        if task in self._running:
            self._running.remove(task)
        task.error = error
        task.ended = time.perf_counter()
        if error is None:
            self.counts.finished += 1
        elif isinstance(error, CancelledError):
            self.counts.cancelled += 1
        else:
            self.counts.failed += 1
        task.done.set()
        task.on_news()

    def _end_late(self) -> None:
        latest = time.perf_counter() - self.limits.seconds
        for task in [*self._waiting, *self._running]:
            if task.arrived < latest:
                self._end(task, LateError(f"the request took longer than {self.limits.seconds:g} seconds."))

    def _cancel_all(self) -> None:
        for task in [*self._waiting, *self._running]:
            self._end(task, ClosingError("the server is shutting down."))


def _wake() -> None:
    """Do nothing: a command that ends the thread's wait."""
