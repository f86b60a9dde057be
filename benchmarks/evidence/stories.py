"""Rows of stories for small networks that are trained from scratch.

Shape suffixes: N rows, L tokens of a row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from anyorder.data import pack, train_tokenizer
from anyorder.errors import UserError
from anyorder.likelihood.exact import left_to_right_log_prob
from anyorder.model.llama import Llama
from anyorder.objectives import Objective
from anyorder.orders.plan import GroupPlan
from anyorder.training import Training, fit
from anyorder.training.samples import TensorRows

FILE = "tinystories/tinystories_lowercased_4M.txt"


def stories_text(data: Path) -> str:
    """TinyStories, in lower case.

    Raises:
        UserError: the folder lacks it.
    """
    if not (data / FILE).is_file():
        raise UserError(f"data is {str(data)!r}, which lacks {FILE}: give the folder that has it.")
    return (data / FILE).read_text(encoding="utf-8")


class Stories:
    """Rows of a text, of which the last tenth is never learnt.

    Args:
        text: stories, one after the other.
        vocabulary: tokens of a tokenizer that is made from what is learnt.
    """

    def __init__(self, text: str, vocabulary: int) -> None:
        cut = text.index("\n", len(text) * 9 // 10)
        self.tokenizer = train_tokenizer([text[:cut]], vocabulary)
        self.learnt, self.held_back = (self.tokenizer(part)["input_ids"] for part in (text[:cut], text[cut:]))

    def rows(self, ids: Sequence[int], length: int) -> Tensor:
        """Token ids laid out in rows, `[rows, length]`."""
        return pack([ids], length, self.tokenizer.eos_token_id)


def losses(model: Llama, rows_NL: Tensor, batch: int) -> Tensor:
    """Nats of each token but the first of each row, from left to right, float64 `[rows, length - 1]`."""
    parts = []
    for part_NL in rows_NL.split(batch):
        plan = GroupPlan.sequential([part_NL.shape[1]] * len(part_NL), given=[1] * len(part_NL))
        parts.append(left_to_right_log_prob(model, part_NL.tolist(), plan).token_BL)
    return -torch.cat(parts)[:, 1:].double()


def step_seconds(
    model: Llama, objective: Objective, rows_NL: Tensor, training: Training, first: int = 2
) -> list[float]:
    """Seconds of the processor in each optimizer step, without the first ones; the network is trained meanwhile.

    The processor's own time, so that what else the machine does makes little difference on one thread.
    """
    clock = Clock()
    fit(model, objective, TensorRows(rows_NL), training, callbacks=[clock])
    return clock.seconds[first:]


class Clock(TrainerCallback):
    """Counts the seconds of the processor.

    Attributes:
        seconds: of each step.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Start."""
        self._started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Stop."""
        self.seconds.append(time.process_time() - self._started)
