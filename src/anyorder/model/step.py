"""The one-token step of decoding, compiled as a whole.

Eager PyTorch spends its time between operations when a row is short: about 30 calls a layer. As one
graph the same step runs several times faster on a CPU (`anyorder bench`).

Shape suffixes: B batch, V vocabulary.
"""

from __future__ import annotations

import logging
import shutil
import time
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.cache import Cache
from anyorder.model.llama import Llama
from anyorder.visibility import causal

logger = logging.getLogger(__name__)

WORTH_COMPILING = 512
"""New tokens from which on the step is compiled unasked: that takes seconds once it is on disk, and longer before."""

SMALL = 32 * 2**20
"""Bytes of weights below which one thread is faster than several, which have to meet after every operation."""

SMALLEST_EXTENT = 128
"""Cache slots that a compiled step reads at least; more are read in powers of two."""


def compiler_at_hand(device: torch.device) -> bool:
    """Whether TorchInductor can compile for this device: it needs a C++ compiler for a CPU."""
    return device.type == "cuda" or any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def step_extent(keys: int, capacity: int) -> int:
    """Slots to read when samples hold at most `keys` keys: few different numbers, and at most twice what is needed."""
    return min(capacity, max(SMALLEST_EXTENT, 1 << (keys - 1).bit_length()))


def one_token(model: Llama, ids_B1: Tensor, position_B1: Tensor, valid_B1: Tensor, cache: Cache, extent: int) -> Tensor:
    """One token per sample over the cache, left to right: logits `[batch, vocabulary]`. No decision depends on data."""
    views = model.prepare(causal(), {"position": position_B1}, valid=valid_B1, cache=cache, extent=extent)
    return model.logits(model.hidden(ids_B1, views, cache)[:, 0])


class OneTokenStep:
    """`one_token` of one network, compiled at its first call: for one row and for several rows apart.

    TorchInductor keeps compiled code on disk, so that later processes only trace the step.
    """

    def __init__(self, model: Llama) -> None:
        # The compiler keeps what it made with the code object, so each network gets one of its own.
        function = types.FunctionType(one_token.__code__.replace(), one_token.__globals__)
        self.compiled: Callable[..., Tensor] = torch.compile(function, **_options(model))
        self.known: set[bool] = set()

    def __call__(
        self, model: Llama, ids_B1: Tensor, position_B1: Tensor, valid_B1: Tensor, cache: Cache, keys: int
    ) -> Tensor:
        """Logits `[batch, vocabulary]` for the next token of samples that hold at most `keys` keys with this one."""
        single, started = len(ids_B1) == 1, time.perf_counter()
        logits_BV = self.compiled(model, ids_B1, position_B1, valid_B1, cache, step_extent(keys, cache.capacity))
        if single not in self.known:
            self.known.add(single)
            logger.info("compiled the one-token step in %.1f s", time.perf_counter() - started)
        return logits_BV


def _of_the_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's checks stay: not those of the network, whose code this is alone.

    They would take longer than the step itself of a small network.
    """
    return ["model" not in guard.name and not guard.is_global for guard in guards]


def _options(model: Llama) -> dict[str, Any]:
    """What `torch.compile` is told."""
    if model.device.type == "cuda":  # CUDA graphs, one for each extent
        return {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}
    # A wrapper in C++ instead of Python halves the time of a small network's step.
    options = {"cpp_wrapper": True, "guard_filter_fn": _of_the_inputs}
    if sum(weight.nbytes for weight in model.parameters()) < SMALL:
        options["cpp.threads"] = 1
    return {"fullgraph": True, "dynamic": True, "options": options}


_STEPS: weakref.WeakKeyDictionary[Llama, OneTokenStep] = weakref.WeakKeyDictionary()


def compiled_step(model: Llama) -> OneTokenStep:
    """The compiled step of a network, the same one whenever it is asked for again.

    Raises:
        UserError: there is no compiler.
    """
    if not compiler_at_hand(model.device):
        raise UserError("compile is True, but no C++ compiler is at hand: install g++, or give compile=False.")
    return _STEPS.setdefault(model, OneTokenStep(model))


def pays_to_compile(model: Llama, max_new_tokens: int) -> bool:
    """Whether to compile unasked: the step has been compiled in this process, or much is to be written."""
    able = compiler_at_hand(model.device) and model.backend in ("auto", "sdpa")
    return able and (model in _STEPS or max_new_tokens >= WORTH_COMPILING)
