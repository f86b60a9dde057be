"""Several processes, as `torchrun` starts them: who has which part, and how they agree.

A mesh has two dimensions: "data", whose processes share out prompts, and "tensor", whose processes share one network.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.parallel.plans import check_divisible
from anyorder.utils.annotations import shown

if TYPE_CHECKING:  # which take a second to import, and one process needs none of them
    from torch.distributed.device_mesh import DeviceMesh

    from anyorder.parallel.apply import Sharding

S = TypeVar("S")
T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it fails."""

REPORT_TIMEOUT = timedelta(seconds=10)
"""How long a process waits for the message of the first one before it prints its own."""


def launched() -> int:
    """Return the number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Processes:
    """All processes of a run.

    Attributes:
        mesh: of the dimensions "data" and "tensor".
    """

    mesh: DeviceMesh

    @property
    def tensor(self) -> DeviceMesh:
        """The processes that share one network with this one."""
        return self.mesh["tensor"]

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return this_device(self.mesh.device_type)

    @property
    def groups(self) -> int:
        """How many groups of processes, each with a whole network, share out the items."""
        return self.mesh["data"].size()

    @property
    def group(self) -> int:
        """The number of the group of this process."""
        return self.mesh["data"].get_local_rank()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return dist.get_rank() == 0

    def own(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items of this process: every n-th, so that all have equally many but for the last."""
        for number, item in enumerate(items):
            if number % self.groups == self.group:
                yield item

    def shares(self, value: T) -> list[T]:
        """Return the values of all processes that share out items, in each of them."""
        return _exchanged(value, self.mesh["data"].get_group())

    def in_order(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """Return the items that `own` shared out in their order, of what each process made of its own."""
        return [share[turn] for turn in range(len(shares[0])) for share in shares if turn < len(share)]

    def share_out(self, items: Sequence[S], compute: Callable[[S], T]) -> list[T]:
        """Return what a function makes of each item, in their order and in each process; a group computes its own."""
        return self.in_order(self.shares([compute(item) for item in self.own(items)]))

    def broadcast(self, value: T) -> T:
        """Return the value of the first process, in each."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def differences(self, record: Any) -> list[tuple[int, str, Any, Any]]:
        """Compare a dataclass, of which each process has one, with that of the first process.

        Returns:
            Of each field that differs somewhere: the process, the field, its value there, and that of the first
            process; the same in each process.
        """
        first, *others = _exchanged(record, None)
        return [
            (number, field.name, getattr(other, field.name), getattr(first, field.name))
            for number, other in enumerate(others, start=1)
            for field in dataclasses.fields(record)
            if getattr(other, field.name) != getattr(first, field.name)
        ]

    def split(self, config: ModelConfig) -> Sharding:
        """Return how a network is split over these processes, after a comparison of all configurations.

        Raises:
            UserError: one process has another configuration, in each process; or see `check_divisible`.
        """
        for number, name, found, expected in self.differences(config):
            raise UserError(
                f"process {number} has a network whose {name} is {shown(found)}, and process 0 one whose "
                f"{name} is {shown(expected)}: give all processes the same checkpoint."
            )
        check_divisible(config, self.tensor.size())
        from anyorder.parallel.apply import Sharding

        return Sharding(config, self.tensor)


def is_split(model: nn.Module) -> bool:
    """Whether a network, or a part of it, is split over processes: whether a parameter is a `DTensor`."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def begin(tensor_parallel: int | None, device: str = "auto") -> Processes:
    """Join the processes that `torchrun` started.

    Args:
        tensor_parallel: processes that one network is split over; the groups of so many share out the prompts.
        device: such as "cpu"; "auto" takes a GPU for each process where there are GPUs.

    Raises:
        UserError: the number of processes is no multiple of `tensor_parallel`, or they cannot reach each other.
    """
    number = launched()
    if tensor_parallel is None:
        raise UserError(
            f"{number} processes were started without tensor_parallel: give --tensor_parallel {number} to split the "
            "network over them, or 1 to share out the prompts."
        )
    if tensor_parallel < 1:
        raise UserError(f"tensor_parallel is {tensor_parallel}: give a number of processes, 1 for no split.")
    if number % tensor_parallel:
        started = "1 process was" if number == 1 else f"{number} processes were"
        raise UserError(
            f"tensor_parallel is {tensor_parallel}, but {started} started: start {tensor_parallel}, or a multiple, "
            f"with torchrun --nproc-per-node {tensor_parallel} -m anyorder ..."
        )
    kind = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    ).type
    if kind == "cuda":
        torch.cuda.set_device(this_device(kind))
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
        except (ValueError, dist.DistNetworkError) as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the processes cannot reach each other at {place} ({reason}): start them with torchrun --standalone, "
                "which takes a free port."
            ) from error
    from torch.distributed.device_mesh import init_device_mesh

    shape = (number // tensor_parallel, tensor_parallel)
    return Processes(init_device_mesh(kind, shape, mesh_dim_names=("data", "tensor")))


def this_device(kind: str) -> torch.device:
    """Return the device of this process, of a kind such as "cuda": one for each process of a machine."""
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)


def _exchanged(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Return the values of all processes of a group, in each."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def is_reported_elsewhere(printed: bool) -> bool:
    """Let one process print the message of a mistake that all make: the first one, if it makes it at all.

    Args:
        printed: whether this process, the first one, has printed its message; the others wait for that.

    Returns:
        Whether the first process has printed a message, so that another one need not.
    """
    answers: list[bool] = []
    # In a thread that may be left behind: where another program has the port, PyTorch waits without end.
    asking = threading.Thread(target=lambda: answers.append(_is_reported(printed)), daemon=True)
    asking.start()
    asking.join(REPORT_TIMEOUT.total_seconds() * 1.5)
    return answers == [True]


def _is_reported(printed: bool) -> bool:
    # The store of the launcher, not a collective: a process that made no mistake takes part in nothing here.
    with suppress(KeyError, ValueError, RuntimeError):  # RuntimeError: it cannot be reached, or nothing came in time
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*place, is_master=False, timeout=REPORT_TIMEOUT)
        key = f"anyorder/reported/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        if printed:
            store.set(key, "1")
        else:
            store.wait([key], REPORT_TIMEOUT)
        return True
    return False
