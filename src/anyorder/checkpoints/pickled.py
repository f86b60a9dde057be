"""Files of `torch.save`, `.pth` and `.bin`: their tensors are read, and nothing else that they hold."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anyorder.checkpoints.weights import DTYPES, listed
from anyorder.errors import UserError
from anyorder.utils.annotations import shown


def load_pickled(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the tensors of a file by name, mapped into memory where its form allows; nothing in it is ever run.

    Args:
        file: the file.
        wanted: whether an entry of this name is to be read.

    Raises:
        UserError: it is missing, damaged, or a wanted entry is no tensor of a dtype that is read.
    """
    if not file.is_file():
        raise UserError(f"weight file {str(file)!r} is missing: complete the folder.")
    try:
        mapped = zipfile.is_zipfile(file)  # as PyTorch writes since 1.6
        with torch.serialization.safe_globals([io.BytesIO]):  # bytes in memory: extra states of some layers
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {code[1]}, which is no tensor and may be code" if code else "holds something else than tensors"
        raise UserError(
            f"weight file {str(file)!r} {what}; nothing of it was run: get the weights from a source that you trust."
        ) from error
    except Exception as error:  # PyTorch raises many kinds where an archive is broken
        size = file.stat().st_size
        raise UserError(
            f"weight file {str(file)!r} of {size} bytes is damaged, not whole, or no archive of torch.save: fetch it "
            "again."
        ) from error
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise UserError(f"weight file {str(file)!r} holds {kind}, not tensors by name: give the published weights.")
    tensors = {name: tensor for name, tensor in loaded.items() if wanted(name)}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            remedy = "give the weights alone"
            raise UserError(f"{str(file)!r} has a tensor named {shown(name)}, which is no text: {remedy}.")
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise UserError(f"{name!r} in {str(file)!r} is of type {kind}, not a tensor: give the weights alone.")
        if tensor.dtype not in DTYPES.values() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"tensor {name!r} in {str(file)!r} is stored as {kind}: store it as one of {listed(DTYPES)}."
            )
    return tensors
