"""Curves of losses: as numbers that people compare, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

Log = list[dict[str, float]]
"""What `Trainer` notes: entries with "step" and "loss", "learning_rate" or "eval_<name>"."""


def with_bits_per_byte(log: Log, bytes_per_token: float | None) -> Log:
    """Add each loss on validation data in bits per byte, which vocabularies do not change.

    Args:
        log: entries with "eval_<name>" in nats per token.
        bytes_per_token: of the validation data; where it is not known, nothing is added.
    """
    if bytes_per_token is None:
        return log
    per_nat = 1 / (math.log(2) * bytes_per_token)
    return [
        entry | {f"{name}_bits_per_byte": nats * per_nat for name, nats in entry.items() if name.startswith("eval_")}
        for entry in log
    ]


def draw_curves(logs: Mapping[str, Log], file: Path, *, level: Mapping[str, float] | None = None) -> None:
    """Draw losses over steps into a PNG: lines for training, dots for validation.

    Args:
        logs: for each name a log.
        file: where to.
        level: horizontal lines to compare with, in nats per token.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5) if len(logs) > 1 else (7, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, log) in enumerate(logs.items()):
        colour = f"C{number}"
        trained = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
        axes.plot(*zip(*trained, strict=True), color=colour, linewidth=1, label=name)
        evaluated = sorted({key for entry in log for key in entry if _is_loss_in_nats(key)})
        for marker, key in zip("osv^D", evaluated, strict=False):
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            # The dots of a single objective, in the colour of its line, need no label.
            label = f"{name}: {key.removeprefix('eval_')}" if len(evaluated) > 1 else None
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=4, label=label)
    for label, nats in (level or {}).items():
        axes.axhline(nats, color="grey", linestyle=":", linewidth=1)
        axes.annotate(label, (1, nats), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss in nats per token (dots: validation)")
    if len(logs) > 1:
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axes.legend(fontsize=8)
    figure.savefig(file, format="png", dpi=120)


def _is_loss_in_nats(key: str) -> bool:
    return key.startswith("eval_") and not key.endswith("_bits_per_byte")
