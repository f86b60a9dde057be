"""A training that is interrupted by a signal ends after a whole step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl

HANDLED: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""Signals that end a training, with the handlers that are replaced; a handler of the caller's own stays."""


class Interrupted(KeyboardInterrupt):
    """A training ended early, because a signal came.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.signal = number


class Interruption(TrainerCallback):
    """Remembers signals, and ends the training after the step in which one came.

    Args:
        alone: whether this is the only process; several end after the same step, once they have set `agreed`.

    Attributes:
        signal: the number of the signal that came.
        agreed: whether one came to any of the processes.
    """

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.signal: int | None = None
        self.agreed = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Handle signals within the block; Python allows that in the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        replaced = [number for number, handler in HANDLED.items() if signal.getsignal(number) == handler]
        for number in replaced:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in replaced:
                signal.signal(number, HANDLED[number])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Processes that torchrun started have each signal twice, from the terminal and from torchrun.
        if self.alone and self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        self.agreed = self.agreed or self.alone

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **others: Any) -> None:
        """Save and stop, if a signal came."""
        if self.agreed:
            control.should_save = control.should_training_stop = True
