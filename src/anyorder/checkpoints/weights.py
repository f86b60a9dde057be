"""Weights on disk, and how they get into a network: one tensor at a time, each checked.

The network is built without memory (on PyTorch's meta device), so loading never holds much more than the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyorder.attention import resolve_backend
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.utils.annotations import shown

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtypes that weights are read, kept and written in."""


Index = tuple[slice, ...]
"""Which part of a tensor: a slice of each of its first dimensions."""


class Split(Protocol):
    """Which part of each tensor is read, and the parameter that it becomes."""

    def part(self, name: str, shape: tuple[int, ...]) -> Index:
        """Return the index of the part; empty for the whole tensor."""

    def parameter(self, name: str, part: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
        """Return the parameter of the whole `shape` that consists of this part and those that are elsewhere."""


SplitOf = Callable[[ModelConfig], Split]
"""How a network is split, by its configuration; called before weights are read."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights on disk under Hugging Face's names; nothing but the headers is read yet.

    Attributes:
        path: the file or folder, for messages.
        config: the network that they belong to.
        shapes: of each tensor.
        dtypes: that each tensor is stored in.
        read: a tensor by its name, in memory of its own, on the CPU.
        read_part: the same of an index of a tensor; reads no more where the file allows it. None: `read` is indexed.
    """

    path: Path
    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    read_part: Callable[[str, Index], Tensor] | None = None

    def part(self, name: str, index: Index) -> Tensor:
        """Read an index of a tensor, in memory of its own; all of it where the index is empty."""
        if not index:
            return self.read(name)
        return self.read(name)[index].clone() if self.read_part is None else self.read_part(name, index)

    @property
    def dtype(self) -> torch.dtype:
        """What all tensors fit in without loss: the stored dtype, unless several are mixed."""
        if not self.dtypes:
            raise UserError(f"checkpoint {str(self.path)!r} holds no tensor: fetch the weights again.")
        widest, *others = dict.fromkeys(self.dtypes.values())
        for other in others:
            widest = torch.promote_types(widest, other)
        return widest


def load(
    checkpoint: Checkpoint, *, dtype: str | torch.dtype, device: str | torch.device, backend: str,
    split: SplitOf | None = None,
) -> Llama:  # fmt: skip
    """The network with its weights, ready to write; where it is `split`, with its part of each.

    Raises:
        UserError: names or shapes disagree with the configuration, a weight is not finite, or `dtype`, `device` or
            `backend` cannot be had.
    """
    wanted = None if dtype == "auto" else resolve_dtype(dtype)
    device = resolve_device(device)
    check_layers(checkpoint.path, checkpoint.config.num_hidden_layers, len(checkpoint.shapes))
    parts = None if split is None else split(checkpoint.config)
    model = blank(checkpoint.config, backend)
    names = _parameter_names(model)
    _check_names(checkpoint, names)
    resolve_backend(backend, device, wanted or checkpoint.dtype)  # refuses before weights are read
    for name in names:
        _check_shape(checkpoint, name, model.get_parameter(name).shape)
    # Largest first: a tensor and its copy on disk are in memory together, which would count most at the end.
    for name in sorted(names, key=lambda name: -math.prod(checkpoint.shapes[name])):
        shape = checkpoint.shapes[name]
        index = () if parts is None else parts.part(name, shape)
        weight = _read(checkpoint, name, wanted or checkpoint.dtype, index)
        for alias in names[name]:
            if alias in checkpoint.shapes:
                _check_shape(checkpoint, alias, torch.Size(shape))
                _check_tied(checkpoint, name, alias, weight, index)
        weight = weight.to(device)
        parameter = nn.Parameter(weight) if parts is None else parts.parameter(name, weight, shape)
        for place in (name, *names[name]):
            put(model, place, parameter)
    return model.eval()


def blank(config: ModelConfig, backend: str = "auto") -> Llama:
    """A network without memory (on PyTorch's meta device), made in no time; `put` fills it.

    Raises:
        UserError: no attention of the configuration's name is registered.
    """
    with torch.device("meta"), _Undrawn():
        return Llama(config, backend)


def put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Sets the parameter of this name, such as "model.norm.weight"."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)


class _Undrawn(TorchFunctionMode):
    """Passes over drawing weights at random: on the meta device it imports PyTorch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype, given by itself or by its name.

    Raises:
        UserError: weights are not kept in it.
    """
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise UserError(f"dtype is {dtype!r}: give 'auto' or one of {listed(DTYPES)}.")
    return found


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that is there, given by itself or by its name; "auto" is a GPU if there is one.

    Raises:
        UserError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found).item()  # fails on "meta", too, which holds no numbers
    # A backend that this PyTorch was built without fails in its own way: CUDA, for one, by an AssertionError.
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device {str(device)!r} is not available here: give 'auto', 'cpu' or 'cuda'.") from error
    return found


def _parameter_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Of each parameter its name, with the other names that it has where weights are tied."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return {first: tuple(others) for first, *others in names.values()}


FEW_LAYERS = 100
"""Layers that are built in a moment, so that each tensor that they lack can be named."""


def check_layers(path: Path, layers: int, tensors: int) -> None:
    """Refuse a configuration of many more layers than there are tensors, before a network is built: that takes time.

    Raises:
        UserError: see above.
    """
    if layers > tensors + FEW_LAYERS:
        raise UserError(
            f"checkpoint {str(path)!r} has {tensors} tensors, but its configuration {layers} layers: mend the "
            "configuration, or fetch the weights again."
        )


def _check_names(checkpoint: Checkpoint, names: Mapping[str, tuple[str, ...]]) -> None:
    missing = [name for name in names if name not in checkpoint.shapes]
    if missing:
        raise UserError(
            f"checkpoint {str(checkpoint.path)!r} lacks {counted(missing)}: complete it, or mend the configuration "
            "beside it (layers, biases, tied head)."
        )
    known = {*names, *(alias for aliases in names.values() for alias in aliases)}
    unexpected = [name for name in checkpoint.shapes if name not in known]
    if unexpected:
        raise UserError(
            f"checkpoint {str(checkpoint.path)!r} has {counted(unexpected)} that the network does not have: mend the "
            "configuration beside it (layers, biases), or read it with a version that knows this kind."
        )


def _check_shape(checkpoint: Checkpoint, name: str, expected: torch.Size) -> None:
    if checkpoint.shapes[name] != tuple(expected):
        raise UserError(
            f"tensor {name!r} in {str(checkpoint.path)!r} has shape {list(checkpoint.shapes[name])}, but the "
            f"configuration asks for {list(expected)}: mend the configuration, or fetch the weights again."
        )


def _read(checkpoint: Checkpoint, name: str, dtype: torch.dtype, index: Index) -> Tensor:
    weight = checkpoint.part(name, index).to(dtype)
    if _is_finite(weight):
        return weight
    if _is_finite(checkpoint.part(name, index)):
        raise UserError(f"tensor {name!r} in {str(checkpoint.path)!r} is too large for {dtype}: give a wider dtype.")
    raise UserError(f"tensor {name!r} in {str(checkpoint.path)!r} holds NaN or infinity: fetch the weights again.")


def _is_finite(weight: Tensor) -> bool:
    if not weight.numel():  # of a part
        return True
    low, high = weight.aminmax()  # NaN comes through, and no tensor of booleans is made
    return math.isfinite(low) and math.isfinite(high)


def _check_tied(checkpoint: Checkpoint, name: str, alias: str, weight: Tensor, index: Index) -> None:
    if not torch.equal(_read(checkpoint, alias, weight.dtype, index), weight):
        raise UserError(
            f"tensors {name!r} and {alias!r} in {str(checkpoint.path)!r} differ, but the configuration ties them: set "
            "tie_word_embeddings to false."
        )


def counted(names: Collection[str]) -> str:
    """Such as "tensors 'a', 'b', 'c' and 4 more"."""
    first = ", ".join(map(shown, list(names)[:3]))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {first}{more}"


def listed(names: Iterable[str]) -> str:
    """Such as "'a', 'b'", for messages."""
    return ", ".join(map(repr, names))
