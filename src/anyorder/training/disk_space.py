"""Space on the disk: checked before a training, and what becomes of the weights where there is none at its end."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder import checkpoints
from anyorder.errors import UserError
from anyorder.training.engine import CHECKPOINT, whole_checkpoints
from anyorder.training.folder import CHECKPOINTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama
    from anyorder.training.settings import Run
    from anyorder.utils.files import DiskError

TRAINED_BYTES = 12
"""Of a checkpoint, for each weight that is trained: itself and two means of AdamW, all float32."""


def check_disk_space(settings: Run, model: Llama) -> None:
    """Compare the free bytes of the disk with what a training will write.

    Raises:
        UserError: there are not enough.
    """
    there = len(whole_checkpoints(settings.output / CHECKPOINTS))
    written = -(-settings.total_steps // settings.save_every) if settings.save_every else 0
    count = max(0, min(settings.keep + 1, written) - there)  # one more while it is written
    each = TRAINED_BYTES * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    whole = sum(weight.nbytes for weight in model.parameters())
    place = next(place for place in (settings.output, *settings.output.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < count * each + whole:
        parts = f"checkpoints of {_size(count * each)} and a network of {_size(whole)}"
        raise UserError(
            f"output {str(settings.output)!r} is on a disk with {_size(free)} left, but the training writes {parts}: "
            "make room, give another place, or a lower keep."
        )


def rescue(settings: Run, error: DiskError, model: Llama, tokenizer: PreTrainedTokenizerBase) -> UserError:
    """Keep weights that the disk refused in the folder for temporary files, unless the last checkpoint has them.

    Returns:
        The error to raise.
    """
    there = whole_checkpoints(settings.output / CHECKPOINTS)
    what = f"{error.what} ({error.reason})"
    if there and there[-1].name == f"{CHECKPOINT}{settings.total_steps}":
        return UserError(f"{what}: make room, then resume writes it from {str(there[-1])!r}.")
    remedy = "make room, then go on with resume" if there else "make room"
    place = Path(tempfile.mkdtemp(prefix="anyorder-")) / settings.output.name
    try:
        checkpoints.save_model(model, place, tokenizer=tokenizer)
    except UserError:  # that disk is full as well
        shutil.rmtree(place.parent, ignore_errors=True)
        return UserError(f"{what}, nor can {str(place)!r}: {remedy}.")
    return UserError(f"{what}: {remedy}; the network is in {str(place)!r}.")


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
