"""`anyorder sft`."""

from __future__ import annotations

from anyorder.training.settings import Run


def command(settings: Run) -> None:
    """Fine-tune a network on the answers of prompts and dialogues.

    Args:
        settings: all options.
    """
    from anyorder.cli._train import train

    train(settings, tuning=True)
