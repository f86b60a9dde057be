"""What `anyorder pretrain` and `anyorder sft` share: a training with a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anyorder.cli._console import PlainConsole
from anyorder.errors import UserError
from anyorder.training.settings import Run
from anyorder.utils.files import growing_folder, is_overwriting


def train(settings: Run, *, tuning: bool) -> None:
    """Train with a progress bar, and print where the network is, or how to go on after Ctrl-C."""
    settings = settings.completed(tuning=tuning)  # or refused before PyTorch is imported
    first = os.environ.get("RANK", "0") == "0"
    console = PlainConsole(stderr=True, quiet=not first)

    def report(line: str) -> None:
        # In a file, a line stays one line.
        console.print(line, style="dim", soft_wrap=not console.is_terminal)

    # Before PyTorch is imported: threads that wait by spinning made tiny steps ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from anyorder.cli._progress import TrainingProgress
    from anyorder.training.engine import whole_checkpoints
    from anyorder.training.folder import CHECKPOINTS, CURVES
    from anyorder.training.runs import run

    tokens = settings.batch_size * settings.accumulation * settings.length
    try:
        with _overwritten(settings), TrainingProgress(console, tokens_per_step=tokens) as progress:
            log = run(settings, tuning=tuning, callbacks=[progress], report=report)
    except KeyboardInterrupt:
        if whole_checkpoints(settings.output / CHECKPOINTS):
            console.print(f"\n`--resume` with the same options resumes from the last checkpoint in {settings.output}.")
        raise
    final = {name: value for entry in log for name, value in entry.items() if name == "loss" or "eval_" in name}
    console.print(", ".join(f"{name.removeprefix('eval_')} {value:.3f}" for name, value in final.items()))
    console.print(f"network: {settings.output}, curves: {settings.output / CURVES}", soft_wrap=True)
    sys.stdout.flush()


@contextmanager
def _overwritten(settings: Run) -> Iterator[None]:
    """With `--force`, an earlier training in the folder of output stays until this one has a checkpoint."""
    from anyorder.training.engine import whole_checkpoints
    from anyorder.training.folder import CHECKPOINTS

    if not is_overwriting() or os.environ.get("RANK", "0") != "0":
        yield
        return
    if settings.resume:
        raise UserError("force is given with resume, which continues what is there: leave out one of them.")
    for name in ("init", "data", "validation", "tokenizer"):
        place = getattr(settings, name)
        if place is not None and Path(place).resolve().is_relative_to(settings.output.resolve()):
            raise UserError(f"{name} is {str(place)!r} in the folder that --force overwrites: give another output.")
    with growing_folder(settings.output, lambda output: bool(whole_checkpoints(output / CHECKPOINTS))):
        yield
