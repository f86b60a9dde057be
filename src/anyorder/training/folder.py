"""The output folder of a training: a checkpoint in Hugging Face's form, with the records of the training beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder import checkpoints
from anyorder.checkpoints.huggingface import CONFIG
from anyorder.checkpoints.places import NETWORK
from anyorder.training.engine import PARTIAL, sync, whole_checkpoints
from anyorder.utils.files import DiskError, disk_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

CHECKPOINTS, SETTINGS, LOG, CURVES = "checkpoints", "settings.json", "log.json", "loss.png"
"""What a training leaves beside the network."""

TENSORBOARD = "runs"
"""Folder of TensorBoard's files, beside the checkpoints."""


def write_network(model: Llama, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the network among the files of its training, in place of one that a resumed training had left.

    Nothing can be loaded without `config.json`, which goes first and comes last: a killed process leaves no half.

    Raises:
        DiskError: the system refuses to write; nothing is changed.
    """
    partial = output / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        checkpoints.save_model(model, partial, tokenizer=tokenizer)
        sync(partial)
        (output / CONFIG).unlink(missing_ok=True)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == CONFIG):
            file.replace(output / file.name)
        partial.rmdir()
        sync(output)
    except Exception as error:
        reason = error.reason if isinstance(error, DiskError) else disk_error(error)
        if reason is None:
            raise
        raise DiskError(f"network {str(output)!r} cannot be written", reason, "make room") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(output / NETWORK, ignore_errors=True)  # of an earlier version


def nothing_trained(output: Path) -> bool:
    """Whether a training began there and ended before its first checkpoint."""
    if not (output / SETTINGS).is_file() or whole_checkpoints(output / CHECKPOINTS):
        return False
    inside = {path.name for path in (output / CHECKPOINTS).glob("*")}
    found = {path.name for path in output.iterdir()}
    return found <= {SETTINGS, CHECKPOINTS, PARTIAL} and inside <= {PARTIAL, TENSORBOARD}
