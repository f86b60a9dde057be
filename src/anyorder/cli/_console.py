"""The terminal, to which users' text is text: rich takes `[/x]` in a file's name for markup."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text


class PlainConsole(Console):
    """A console that reads neither markup nor emoji codes in what it prints."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)

    def status(self, status: Any, **options: Any) -> Status:
        """Return a context that prints a line while it lasts."""
        return PlainStatus(_plain(status), console=self, **options)


class PlainStatus(Status):
    """The line, which may change."""

    def update(self, status: Any = None, **options: Any) -> None:
        """Print another text."""
        super().update(_plain(status), **options)


def _plain(text: Any) -> Any:
    return Text(text) if isinstance(text, str) else text
