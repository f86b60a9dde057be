"""Weights and the state of the optimizer on disk, by PyTorch's distributed checkpoints in the format of safetensors.

Each process writes and reads its own parts, and what one number of processes wrote, another reads, however the network
is split. PyTorch's own format would pickle; this one holds tensors alone.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.optim import Optimizer

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer"
"""Folder of the state of the optimizer, one file for each process that wrote it."""


def write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write weights into one file, as all processes together have them; none holds more than its part at a time."""
    if not _are_several():
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS, {"format": "pt"})
        return
    _save(weights, HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True))
    if dist.get_rank() == 0:
        (folder / "model-00001-of-00001.safetensors").rename(folder / WEIGHTS)
        shutil.rmtree(folder / "sharded")


def read_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Read the only file of weights in a folder into weights that are there already."""
    _load(weights, HuggingFaceStorageReader(str(folder)))


def write_optimizer(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Write what an optimizer keeps of each weight, such as moments, into a new folder `OPTIMIZER` of this folder."""
    state = {
        f"{name}.{key}": value
        for name, weight in model.named_parameters()
        for key, value in optimizer.state.get(weight, {}).items()
    }
    if state:
        _save(state, HuggingFaceStorageWriter(str(folder / OPTIMIZER), save_distributed=True))


def read_optimizer(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Read what `write_optimizer` wrote, for the same weights in as many processes as there are now."""
    reader = HuggingFaceStorageReader(str(folder / OPTIMIZER))
    written = reader.read_metadata().state_dict_metadata
    fused = {weight for group in optimizer.param_groups if group.get("fused") for weight in group["params"]}
    state: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if f"{name}.step" not in written:  # it has had no gradient yet
            continue
        step = torch.zeros((), device=weight.device if weight in fused else "cpu")
        of_weight = {"step": step, "exp_avg": _zeros_like(weight), "exp_avg_sq": _zeros_like(weight)}
        optimizer.state[weight] = of_weight
        state |= {f"{name}.{key}": value for key, value in of_weight.items()}
    _load(state, reader)


def _zeros_like(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight.detach(), memory_format=torch.preserve_format)


def _save(state: Mapping[str, Tensor], writer: HuggingFaceStorageWriter) -> None:
    with _alone_or_together() as no_dist:
        distributed_checkpoint.save(_detached(state), storage_writer=writer, no_dist=no_dist)


def _load(state: Mapping[str, Tensor], reader: HuggingFaceStorageReader) -> None:
    with _alone_or_together() as no_dist:
        distributed_checkpoint.load(_detached(state), storage_reader=reader, no_dist=no_dist)


@contextmanager
def _alone_or_together() -> Iterator[bool]:
    """Provide whether this process is alone; raise what failed in the first process in which something did."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assuming the intent is to", UserWarning)  # and it is
            yield not _are_several()
    except CheckpointException as error:
        raise min(error.failures.items(), key=lambda failure: failure[0])[1][0] from error


def _detached(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach() for name, tensor in state.items()}


def _are_several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
