"""The lines that a training logs when it begins."""

from __future__ import annotations

import torch

from anyorder.model.llama import Llama
from anyorder.training.settings import Run


def first_line(run: Run, *, tuning: bool, processes: int) -> str:
    """The settings by which trainings differ most, before anything is read."""
    parts = {
        "network": run.init or "from scratch",
        "data": run.data,
        "objective": run.objective or "that of the network",
        "output": f"{run.output}, resumed" if run.resume else run.output,
    }
    named = ", ".join(f"{name} {value}" for name, value in parts.items())
    amount = f"{run.steps} steps" if run.epochs is None else f"{run.epochs:g} epochs"
    device = torch.accelerator.current_accelerator() or "cpu"
    many = f", {processes} processes" if processes > 1 else ""
    return f"anyorder {'sft' if tuning else 'pretrain'}: {named}, {amount}, on {device}{many}"


def summary(run: Run, model: Llama, rows: int | None, *, groups: int) -> str:
    """What the settings amount to, once network and data have been read.

    Args:
        run: the settings, whose objective and steps are known.
        model: the network.
        rows: of the data; None: streamed.
        groups: of processes, which share out the samples of a step.
    """
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    amount = "streamed data" if rows is None else f"{rows:,} rows of data"
    samples = run.batch_size * run.accumulation * groups
    steps = f"{run.total_steps} steps of {samples} samples of at most {run.length} tokens"
    rate = f"learning rate {run.learning_rate:g}"
    return f"{size:.1f} million weights, {amount}, objective {run.objective}, {steps}, {rate}"
