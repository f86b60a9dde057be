"""A queue of tasks, and one thread that owns the network and runs them, forward pass by forward pass.

Between two passes tasks begin, end, are cancelled and run out of time. Tasks begin in the order in which they came.
Groups take turns, one pass each, so no task waits for another one to end as long as there is room for its samples.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from anyorder.errors import UserError
from anyorder.serving.groups.group import Group
from anyorder.serving.groups.sample import Sample
from anyorder.serving.tasks import BusyError, Call, CancelledError, ClosingError, Commands, LateError, Task
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

    What the thread does depends on its commands alone, so that several processes that obey the same commands run the
    same passes.

    Args:
        limits: bounds.
        commands: where the thread's commands come from; a queue of its own unless given.

    Attributes:
        counts: what was done so far.
        error: why the thread ended; None unless it did by an error of its own.
        on_failure: called in the thread after it ended by an error of its own.
    """

    def __init__(self, limits: Limits = Limits(), commands: Commands | None = None) -> None:
        self.limits = limits
        self.counts = Counts()
        self.error: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._commands = commands or Commands()
        self._numbers = itertools.count()
        self._queued: dict[int, Task] = {}  # as other threads see them, from `submit` on until they begin
        self._asked: dict[int, Call] = {}  # likewise, until they have an answer
        self._tasks: dict[int, Task] = {}
        self._calls: dict[int, Call] = {}
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []
        self._groups: dict[Hashable, Group] = {}
        self._task_of: dict[Sample, Task] = {}
        self._closing = False
        self._ending = False
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
            if len(self._queued) >= self.limits.queued:
                raise BusyError(self._retry_after())
            task.arrived, task.number = time.perf_counter(), next(self._numbers)
            self._commands.put(partial(Engine._receive, task=task))
            self._queued[task.number] = task
            self.start()
        return task

    def start(self) -> None:
        """Start the thread, if it has not been."""
        if not self._thread.is_alive():
            self._thread.start()

    def cancel(self, task: Task) -> None:
        """End a task before the next pass, if it has not ended."""
        error = CancelledError("the request was cancelled.")
        self._commands.put(partial(Engine._end_number, number=task.number, error=error))

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function in the engine's thread, between two passes; one that takes long calls `breathe` at times."""
        with self._lock:
            if self._closing or self.error is not None:
                raise ClosingError("the server is shutting down.")
            call = Call(next(self._numbers), function)
            self._commands.put(partial(Engine._note, call=call))
            self._asked[call.number] = call
            self.start()
        call.future.add_done_callback(partial(self._answered, call.number))
        return call.future

    def _answered(self, number: int, future: Future[Any]) -> None:
        self._asked.pop(number, None)
        if future.cancelled():
            self._commands.put(partial(Engine._forget, number=number))

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
            self._commands.put(Engine._cancel_all)
        self._commands.put(Engine._end_when_idle)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._commands.put(Engine._cancel_all)
            self._thread.join()

    @property
    def running(self) -> int:
        """Samples that are being written."""
        return len(self._task_of)

    @property
    def waiting(self) -> int:
        """Tasks that wait for room."""
        return len(self._queued)

    def _retry_after(self) -> int:
        """Return the seconds that the oldest of the running tasks has taken: a guess at when there is room again."""
        ages = [time.perf_counter() - task.began for task in self._running]
        return max(1, round(max(ages, default=1.0)))

    # ---- in the thread ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run in this thread instead, until the end.

        Raises:
            Exception: why it ended, if by an error of its own.
        """
        self._run()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while self._obey():
                self._turn()
                self._call_next()
        except BaseException as error:
            logger.exception("the engine has ended")
            with self._lock:
                self.error = error
        finally:
            reason = self.error or ClosingError("the server is shutting down.")
            for task in [*self._waiting, *self._running, *self._queued.values()]:
                self._end(task, reason)
            for call in list(self._asked.values()):
                with suppress(InvalidStateError):
                    call.future.set_exception(reason)
            if self.error is not None:
                self.on_failure()

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
            if idle and self._ending:
                return False
            for command in self._commands.take(wait=idle):
                command(self)
            if not idle:
                return True

    def _call_next(self) -> None:
        """Run the oldest of the calls."""
        for number in list(self._calls)[:1]:
            if (error := self._calls.pop(number).run()) is not None:
                self._commands.tolerate(error)

    def _begin(self) -> None:
        """Begin the tasks for which there is room, first come, first served."""
        while self._waiting and self.running + self._waiting[0].size <= self.limits.running:
            task = self._waiting.popleft()
            with self._lock:
                self._queued.pop(task.number, None)
            task.began = time.perf_counter()
            self._running.append(task)
            try:
                samples = task.open()
            except Exception as error:
                self._end(task, error)
                self._commands.tolerate(error)
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
            self._commands.tolerate(error)
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
                if failure is not None:
                    self._commands.tolerate(failure)
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
            self._queued.pop(task.number, None)
        self._tasks.pop(task.number, None)
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
        # By a command, as clocks of several processes differ.
        latest = time.perf_counter() - self.limits.seconds
        for task in [*self._waiting, *self._running]:
            if task.arrived < latest:
                error = LateError(f"the request took longer than {self.limits.seconds:g} seconds.")
                self._commands.put(partial(Engine._end_number, number=task.number, error=error))

    # ---- commands --------------------------------------------------------------------------------------

    def _receive(self, task: Task) -> None:
        self._tasks[task.number] = task
        self._waiting.append(task)

    def _end_number(self, number: int, error: BaseException) -> None:
        if number in self._tasks:
            self._end(self._tasks[number], error)

    def _note(self, call: Call) -> None:
        self._calls[call.number] = call

    def _forget(self, number: int) -> None:
        self._calls.pop(number, None)

    def _cancel_all(self) -> None:
        for task in [*self._waiting, *self._running]:
            self._end(task, ClosingError("the server is shutting down."))

    def _end_when_idle(self) -> None:
        self._ending = True
