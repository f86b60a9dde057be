"""Losses and time of a training since its beginning, also where it was resumed."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Sums of the losses of optimizer steps, and seconds.

    Attributes:
        unlogged: float `[]`, sum since the last entry of the log, on the device of the network.
        logged: sum up to that entry.
        logged_at: its step.
        seconds_before: of the pieces before the training was resumed.
        saved_step: the step of the latest checkpoint.
        whole: whether weights and optimizer are those after a whole step.
    """

    def __init__(self) -> None:
        self.unlogged = torch.zeros(())
        self.logged = 0.0
        self.logged_at = 0
        self.seconds_before = 0.0
        self.saved_step = 0
        self.whole = False
        self._began = time.monotonic()
        self._unlogged_at_step = self.unlogged

    def log(self, unlogged: float, step: int) -> float:
        """Begin a new entry of the log; returns the mean loss of the steps since the last one, whose sum is given."""
        mean = unlogged / max(step - self.logged_at, 1)
        self.logged, self.logged_at = self.logged + unlogged, step
        self.unlogged = torch.zeros_like(self.unlogged)
        return mean

    def record(self, unlogged: float) -> dict[str, float]:
        """What a checkpoint keeps, as JSON."""
        seconds = self.seconds_before + time.monotonic() - self._began
        return {"unlogged": unlogged, "logged": self.logged, "logged_at": self.logged_at, "seconds": seconds}

    def restore(self, record: dict[str, Any], step: int) -> None:
        """Go on from what a checkpoint kept; an empty record counts from here."""
        self.unlogged = torch.full_like(self.unlogged, record.get("unlogged", 0.0))
        self.logged = record.get("logged", 0.0)
        self.logged_at = record.get("logged_at", step)
        self.seconds_before = record.get("seconds", 0.0)
        self.saved_step = step

    def back_to_step(self) -> None:
        """Forget the losses of a step that did not come to its end."""
        self.unlogged = self._unlogged_at_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self.unlogged = self.unlogged.to(args.device)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """From here on weights change."""
        self.whole = False

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Weights and optimizer have changed."""
        self.whole = True
        self._unlogged_at_step = self.unlogged

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Remember the checkpoint."""
        self.saved_step = state.global_step
