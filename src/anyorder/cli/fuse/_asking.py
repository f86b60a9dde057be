"""Shared by the commands that ask many questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.cli._console import PlainConsole
    from anyorder.model.llama import Llama


@contextmanager
def question_progress(console: PlainConsole) -> Iterator[Progress]:
    """Show bars that count questions; without a terminal, print the last state of each as a line."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        yield bar
    if not console.is_terminal:
        for task in bar.tasks:
            console.print(f"{task.description} {task.completed:.0f}/{task.total:.0f}", soft_wrap=True)


def load(console: PlainConsole, model: str, **options: Any) -> tuple[Llama, PreTrainedTokenizerBase]:
    """Read a model with its tokenizer, which questions need."""
    import anyorder

    with console.status(f"reading {model}"):
        loaded, tokenizer = anyorder.load(model, **options)
    if tokenizer is None:
        raise UserError(f"model {model!r} has no tokenizer: name one with --tokenizer.")
    return loaded, tokenizer
