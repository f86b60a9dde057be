"""Progress of training for a person to see."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MOST_SECONDS = 60
"""Between two plain lines, where the log has entries."""


class TrainingProgress(TrainerCallback):
    """A callback of transformers' `Trainer`: a bar with the loss, or plain lines where there is no terminal.

    A line comes with the first entry of the log, after each tenth of the steps, and at least every minute.

    To be entered as a context, so that the terminal is itself again after Ctrl-C.

    Args:
        console: where to.
        tokens_per_step: of this process, to print tokens per second; not printed unless given.
    """

    def __init__(self, console: Console, tokens_per_step: int | None = None) -> None:
        self.console = console
        self.tokens_per_step = tokens_per_step
        self.began: tuple[int, float] | None = None  # after the first step, which warms up
        self.printed: float | None = None  # when, the last plain line
        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]}{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=None, loss="...", speed="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        now = time.perf_counter()
        self.began = self.began or (state.global_step, now)
        self.bar.update(
            self.task, completed=state.global_step, total=state.max_steps, speed=self._speed(state.global_step, now)
        )

    def _speed(self, step: int, now: float) -> str:
        """Such as ", 1200 tokens/s"."""
        if self.tokens_per_step is None or self.began is None or step == self.began[0]:
            return ""
        return f", {self.tokens_per_step * (step - self.began[0]) / (now - self.began[1]):.0f} tokens/s"

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        if logs is None:
            return
        if "loss" in logs:
            self.bar.update(self.task, loss=f"{logs['loss']:.2f}")
        if self.console.is_terminal:
            return
        held_back = {name.removeprefix("eval_"): loss for name, loss in logs.items() if name.startswith("eval_")}
        if held_back:
            losses = ", ".join(f"{name} {loss:.2f}" for name, loss in held_back.items())
            self.console.print(f"step {state.global_step}/{state.max_steps}  validation: {losses}", soft_wrap=True)
        if "loss" in logs and self._is_due(state, args):
            self.console.print(self._line(state, logs["loss"]), soft_wrap=True)

    def _is_due(self, state: TrainerState, args: TrainingArguments) -> bool:
        """Whether it is time for a plain line."""
        if self.printed is None:
            return True
        tenth = max(1, state.max_steps // 10)
        return state.global_step % tenth < args.logging_steps or time.perf_counter() - self.printed >= MOST_SECONDS

    def _line(self, state: TrainerState, loss: float) -> str:
        """Such as "step 20/1000  loss 5.31, 1200 tokens/s, 0:02:10 left"."""
        now = time.perf_counter()
        self.printed = now
        line = f"step {state.global_step}/{state.max_steps}  loss {loss:.2f}{self._speed(state.global_step, now)}"
        if self.began is None or state.global_step == self.began[0]:
            return line
        each = (now - self.began[1]) / (state.global_step - self.began[0])
        return f"{line}, {timedelta(seconds=round(each * (state.max_steps - state.global_step)))} left"
