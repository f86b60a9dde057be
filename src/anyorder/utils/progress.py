"""How far the writing of many texts has come, for a person to see on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
"""Of the plain lines where standard error is no terminal."""


class TextProgress:
    """A bar with the number of finished texts, such as 123/600; plain lines now and then where there is no terminal.

    To be entered as a context, so that the terminal is itself again after Ctrl-C.

    Args:
        total: number of texts.
        console: where to; standard error unless given.
        done: number of those that were finished before.
    """

    def __init__(self, total: int, console: Console | None = None, done: int = 0) -> None:
        self._total, self._texts, self._tokens = total, done, 0
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self._began = self._last_line = time.monotonic()
        self._drawn = self._console.is_terminal or self._console.is_jupyter
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total} texts"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[tokens]} tokens"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._drawn,
            transient=True,
            redirect_stdout=False,  # which would go to standard error
        )
        self._task = self._bar.add_task("writing", total=total, completed=done, tokens=0)

    def __enter__(self) -> TextProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, texts: int, tokens: int) -> None:
        """Count texts that have just been finished, and tokens that have just been written."""
        self._texts += texts
        self._tokens += tokens
        self._bar.update(self._task, completed=self._texts, tokens=self._tokens)
        now = time.monotonic()
        if not self._drawn and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            done = f"{self._texts}/{self._total} texts, {self._tokens} tokens in {now - self._began:.0f} s"
            self._console.print(done, soft_wrap=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Clear the bar while something else is printed to the same terminal."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()
