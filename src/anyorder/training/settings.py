"""How a training goes, as frozen records that are checked when they are built; nothing here needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anyorder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Training:
    """The part that every training has, whatever is learnt from which data.

    Attributes:
        steps: Optimizer steps.
        batch_size: Samples that a process reads at a time.
        accumulation: Batches of each process whose gradients make one step; the same as one larger batch.
        learning_rate: The highest, at the end of the warm-up.
        warmup: Steps in which the learning rate rises to that; below 1, a share of all steps.
        schedule: How the learning rate goes on: cosine and linear fall to 0 at the last step, constant stays.
        weight_decay: Of the matrices; norms and biases have none.
        clip: Length to which longer gradients are cut.
        precision: What the products are computed in; weights and optimizer stay float32.
        activation_checkpointing: Compute layers again backwards instead of keeping what they made: less memory, a
            third more time.
        seed: Decides first weights, the order of the samples, and all draws.
        log_every: Steps between two entries of the log, each the mean loss since the last one.
        evaluate_every: Steps between two looks at the validation data; 0 only looks at the end.
        save_every: Steps between two checkpoints, from which a training can be resumed; 0 makes none.
        keep: Checkpoints that stay, the latest ones.
        workers: Processes beside the training that read data and make lessons of them; 0 does it in between.

    Raises:
        UserError: a field has a value that cannot be, or two contradict each other.
    """

    steps: int
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "learning_rate", "clip", "log_every", "keep"):
            self._require(name, getattr(self, name) > 0, "give a number above 0")
        for name in ("warmup", "weight_decay", "evaluate_every", "save_every", "workers"):
            self._require(name, getattr(self, name) >= 0, "give 0 or a number above")
        self._require("seed", 0 <= self.seed < 2**32, f"give a whole number from 0 to {2**32 - 1}")
        self._require("warmup", self.warmup < self.steps, f"give less than all {self.steps} steps")
        # A training that is resumed then logs what one that was not interrupted logs.
        whole = self.save_every % self.log_every == 0 or self.log_every > self.steps
        self._require("save_every", whole, f"give a multiple of log_every, which is {self.log_every}")

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise UserError(f"{name} is {getattr(self, name)}: {remedy}.")
