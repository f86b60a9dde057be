"""What the studies of architectures share: rows of stories, small networks trained from scratch, and intervals.

Shape suffixes: N rows, L tokens of a row.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from anyorder.data import pack, train_tokenizer
from anyorder.likelihood.exact import left_to_right_log_prob
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.objectives import Autoregressive
from anyorder.orders.plan import GroupPlan
from anyorder.training import Training, fit
from anyorder.training.curves import Log
from anyorder.training.samples import TensorRows

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
"""Of the palette of Okabe and Ito, which people who see few colours tell apart."""

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Quantiles 0.975 of Student's t, by degrees of freedom."""


class Stories:
    """Rows of a text, of which the last tenth is never learnt.

    Args:
        file: stories, one after the other.
        vocabulary: tokens of a tokenizer that is made from what is learnt.
    """

    def __init__(self, file: Path, vocabulary: int) -> None:
        text = file.read_text(encoding="utf-8")
        cut = text.index("\n", len(text) * 9 // 10)
        self.tokenizer = train_tokenizer([text[:cut]], vocabulary)
        self.learnt, self.held_back = (self.tokenizer(part)["input_ids"] for part in (text[:cut], text[cut:]))

    def rows(self, ids: Sequence[int], length: int) -> Tensor:
        """Token ids laid out in rows, `[rows, length]`."""
        return pack([ids], length, self.tokenizer.eos_token_id)


class Clock(TrainerCallback):
    """Counts the seconds of the processor in training steps, without evaluations.

    The processor's own time, so that what else the machine does makes no difference on one thread.

    Attributes:
        seconds: of the first n steps together, for n from 0 on.
    """

    def __init__(self) -> None:
        self.seconds = [0.0]
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Start."""
        self._started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Stop."""
        self.seconds.append(self.seconds[-1] + time.process_time() - self._started)


def train(
    config: ModelConfig, rows_NL: Tensor, training: Training, looked_at_NL: Tensor | None = None
) -> tuple[Llama, Log, list[float]]:  # fmt: skip
    """Train a network from scratch, left to right; the seed draws its weights and the order of the rows.

    Returns:
        The network; the log, with "eval_loss" where there are rows to look at; the seconds after each step.
    """
    torch.manual_seed(training.seed)
    model, clock, objective = Llama(config), Clock(), Autoregressive()
    validation = None if looked_at_NL is None else {"loss": (objective, TensorRows(looked_at_NL))}
    log = fit(model, objective, TensorRows(rows_NL), training, validation=validation, callbacks=[clock])
    return model, log, clock.seconds


def losses(model: Llama, rows_NL: Tensor, batch: int) -> Tensor:
    """Nats of each token but the first of each row, from left to right, float64 `[rows, length - 1]`."""
    parts = []
    for part_NL in rows_NL.split(batch):
        plan = GroupPlan.sequential([part_NL.shape[1]] * len(part_NL), given=[1] * len(part_NL))
        parts.append(left_to_right_log_prob(model, part_NL.tolist(), plan).token_BL)
    return -torch.cat(parts)[:, 1:].double()


class Interval(NamedTuple):
    """A mean, and how far a 95 % interval reaches on either side of it."""

    mean: float
    reach: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.reach:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, such as one for each seed, by Student's t.

    Above ten values the normal distribution is taken instead, as for means of rows of text.
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, math.nan)
    quantile = STUDENT.get(len(values) - 1, 1.96)
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def draw_runs(
    axes: Any, at: Sequence[float], runs: Sequence[Sequence[float]], colour: str, style: str = "-"
) -> list[float]:  # fmt: skip
    """Draw a thin line for each seed, a thick one for their mean, and its interval from three seeds on.

    Returns:
        The means.
    """
    for run in runs:
        axes.plot(at, run, color=colour, linewidth=0.6, alpha=0.6)
    points = [interval(values) for values in zip(*runs, strict=True)]
    if len(runs) >= 3:
        low, high = ([point.mean + sign * point.reach for point in points] for sign in (-1, 1))
        axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    means = [point.mean for point in points]
    axes.plot(at, means, style, color=colour, linewidth=1.8)
    axes.spines[["top", "right"]].set_visible(False)
    return means


def parameters(config: ModelConfig) -> tuple[int, int]:
    """Weights of the network, and those that read one token: without the experts that are not chosen."""
    total = sum(weight.numel() for weight in Llama(config).parameters())
    experts = config.experts
    if experts is None:
        return total, total
    idle = (experts.number - experts.chosen) * 3 * experts.width * config.hidden_size
    return total, total - idle * sum(kind.experts for kind in config.layers)
