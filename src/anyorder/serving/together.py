"""One engine in each of the processes that a network is split over, all of which run the same passes.

The first process alone has requests. Between two passes it sends the others the commands of its engine: tasks, calls
and cancellations. Clocks and clients decide nothing but by these commands, so that all processes begin the same texts,
run the same passes and draw the same tokens.
"""

from __future__ import annotations

import io
import pickle
import queue
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.serving.engine import Engine, Limits
from anyorder.serving.tasks import Command, Commands, drained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.parallel import Processes

HEARTBEAT = 60.0
"""Seconds without a request after which the others are sent no commands, so that they do not wait in vain."""


def engine_of(
    processes: Processes, model: Llama, tokenizer: PreTrainedTokenizerBase | None, limits: Limits
) -> Engine:  # fmt: skip
    """Make the engine of each process; all call this together.

    Args:
        processes: that the network is split over.
        model: the part of the network that this process has.
        tokenizer: of the network; None where it has none.
        limits: bounds, the same in each process.
    """
    commands = SharedCommands(processes, model, tokenizer)
    engine = Engine(limits, commands)
    commands.known["engine"] = engine
    return engine


def leave_signals_to_the_first() -> None:
    """Let SIGINT and SIGTERM end no process, but the server of the first one, which then ends all of them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class SharedCommands(Commands):
    """The commands of the first process, which all processes obey.

    Args:
        processes: that the network is split over.
        model: the part of the network that this process has.
        tokenizer: of the network.

    Attributes:
        known: by a name, what each process has and is not sent.
    """

    def __init__(self, processes: Processes, model: Llama, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().__init__()
        self.known: dict[str, Any] = {"model": model} | ({} if tokenizer is None else {"tokenizer": tokenizer})
        self._is_first = processes.is_first
        self._own: queue.SimpleQueue[tuple[Command, bytes]] = queue.SimpleQueue()
        self._group = dist.new_group(backend="gloo")  # of objects, also where the network exchanges tensors by NCCL

    def put(self, command: Command) -> None:
        """Add a command, in the first process; in others nothing asks for anything.

        Raises:
            UserError: the others cannot be sent it.
        """
        if not self._is_first:
            return
        try:
            data = _pickled(command, self.known)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"the request cannot be sent to the other processes ({error}): serve the network in one process."
            ) from error
        self._own.put((command, data))

    def take(self, *, wait: bool) -> Sequence[Command]:
        """Take the commands of the first process, in each of them; none where it has waited for `HEARTBEAT`."""
        if not self._is_first:
            return [_unpickled(data, self.known) for data in self._broadcast([])]
        own = drained(self._own, wait=wait, seconds=HEARTBEAT)
        self._broadcast([data for _, data in own])
        return [command for command, _ in own]

    def _broadcast(self, commands: list[bytes]) -> list[bytes]:
        values = [commands]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def tolerate(self, error: BaseException) -> None:
        """Go on after a mistake of a user, which all processes find; another error may be of this process alone.

        Raises:
            BaseException: the error, as the others may wait for this process in the middle of a pass.
        """
        if not isinstance(error, UserError):
            raise error


# ---- between processes of one run, which trust each other ------------------------------------------------


class _Pickler(pickle.Pickler):
    """Sends names of objects that are known."""

    def __init__(self, file: io.BytesIO, known: dict[str, Any]) -> None:
        super().__init__(file)
        self._model = known["model"]
        self._names = {id(one): name for name, one in known.items()}

    def persistent_id(self, obj: Any) -> str | None:
        return self._names.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Llama) and obj.image_rows_NE is not None:
            return _with_images, (self._model, obj.image_rows_NE.cpu())
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: dict[str, Any]) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, pid: str) -> Any:
        return self._known[pid]


def _with_images(model: Llama, image_rows_NE: Tensor) -> Llama:
    return model.with_images(image_rows_NE.to(model.device))


def _pickled(command: Command, known: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, known).dump(command)
    return file.getvalue()


def _unpickled(data: bytes, known: dict[str, Any]) -> Command:
    command: Command = _Unpickler(io.BytesIO(data), known).load()
    return command
