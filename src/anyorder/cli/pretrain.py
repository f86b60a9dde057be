"""`anyorder pretrain`."""

from __future__ import annotations

from anyorder.training.settings import Run


def command(settings: Run) -> None:
    """Train a network on whole texts, from scratch or from a checkpoint.

    Without --init, a network is made from scratch.

    Args:
        settings: all options.
    """
    from anyorder.cli._train import train

    train(settings, tuning=False)
