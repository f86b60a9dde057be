"""Run a function in several processes that exchange tensors by gloo."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as torch_multiprocessing

TIMEOUT = timedelta(minutes=1)

IMPORTED = ("anyorder.api.generate", "anyorder.training", "accelerate", "torch.distributed.tensor.parallel")
"""What processes need and takes seconds to import: once for all of them, by a server that they are forked from."""


def on_processes(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in each process; what one of them raises is raised here.

    Args:
        number: of processes.
        function: called with `arguments`, within a process group.
        arguments: can be pickled.
    """
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    # A file, not a port, by which they find each other: no other process can have it.
    with tempfile.TemporaryDirectory() as folder:
        given = (number, f"file://{folder}/store", function, arguments)
        torch_multiprocessing.start_processes(_begin, given, nprocs=number, start_method="forkserver")


def _begin(
    rank: int, number: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(number), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # of which accelerate wants to know
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=number, timeout=TIMEOUT)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()
