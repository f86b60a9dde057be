"""What `anyorder pretrain` and `anyorder sft` share: a training that a person watches."""

from __future__ import annotations

import os
import sys

from anyorder.cli._console import PlainConsole
from anyorder.training.settings import Run


def train(settings: Run, *, tuning: bool) -> None:
    """Trains with a progress bar, and says where the network is, or how to go on after Ctrl-C."""
    settings = settings.completed(tuning=tuning)  # or refused before PyTorch is imported
    first = os.environ.get("RANK", "0") == "0"
    console = PlainConsole(stderr=True, quiet=not first)

    def tell(line: str) -> None:
        # In a file, a line stays one line.
        console.print(line, style="dim", soft_wrap=not console.is_terminal)

    # Before PyTorch is imported: threads that wait by spinning made tiny steps ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from anyorder.cli._progress import TrainingProgress
    from anyorder.training.engine import checkpoints
    from anyorder.training.folder import CHECKPOINTS, CURVES
    from anyorder.training.runs import run

    tokens = settings.batch_size * settings.accumulation * settings.length
    try:
        with TrainingProgress(console, tokens_per_step=tokens) as progress:
            log = run(settings, tuning=tuning, callbacks=[progress], tell=tell)
    except KeyboardInterrupt:
        if checkpoints(settings.output / CHECKPOINTS):
            console.print(f"\n`--resume` with the same options goes on from the last checkpoint in {settings.output}.")
        raise
    final = {name: value for entry in log for name, value in entry.items() if name == "loss" or "eval_" in name}
    console.print(", ".join(f"{name.removeprefix('eval_')} {value:.3f}" for name, value in final.items()))
    console.print(f"network: {settings.output}, curves: {settings.output / CURVES}", soft_wrap=True)
    sys.stdout.flush()
