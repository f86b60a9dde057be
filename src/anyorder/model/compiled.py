"""Functions of a network and its layers, compiled: when that pays, with which options, and what is done when it fails.

TorchInductor keeps compiled code on disk, so that later processes only trace the function. PyTorch's compiler takes
seconds to import, so it is imported where something is compiled.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
import types
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.packages import PACKAGE_SECONDS, packages_kept
from anyorder.utils.shared_libraries import remove_torn_libraries

logger = logging.getLogger(__name__)

COMPILE_SECONDS, COMPILE_SECONDS_A_LAYER = 24.0, 0.8
"""For the whole step, on an idle machine, where nothing is on disk yet. With the loop of small networks around it,
twice.
"""

SAVED_MS_A_LAYER, SAVED_MS_A_PACKAGE, SAVED_MS_A_MEBIBYTE = 0.5, 1.0, 0.02
"""Milliseconds that a compiled step is faster: by layer, where it is compiled as a whole and where layers are packages,
and by weights, for the products of a single row.

All are fitted to what benchmarks/compile_break_even.py measured on CPUs; see docs/speed.md.
"""

SMALL = 32 * 2**20
"""Bytes of weights below which one thread is faster than several, which have to meet after every operation."""


def compiler_at_hand(device: torch.device) -> bool:
    """Whether TorchInductor can compile for this device: on a CPU it needs a C++ compiler."""
    return device.type == "cuda" or any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def require_compiler(device: torch.device) -> None:
    """Check that there is a compiler for this device.

    Raises:
        UserError: there is none.
    """
    if not compiler_at_hand(device):
        raise UserError("compile is True, but no C++ compiler is at hand: install g++, or give compile=False.")


def is_small(model: Llama) -> bool:
    """Whether starting an operation costs more than what it computes, so that one thread beats several."""
    weights = (*model.parameters(), *model.buffers())  # those in int8 are buffers
    return model.device.type == "cpu" and sum(weight.nbytes for weight in weights) < SMALL


class CannotCompile(Exception):  # noqa: N818 (not a mistake: what was to be compiled can run uncompiled)
    """The compiler failed at code that runs without it."""


class Compiled:
    """A function of one network, compiled at its first call: for one row and for several rows apart.

    Its first arguments are the network and a tensor with a row for each sample.
    """

    def __init__(self, function: Callable[..., Tensor], model: Llama) -> None:
        # The compiler keeps what it made with the code object, so each network gets one of its own.
        own = types.FunctionType(function.__code__.replace(), function.__globals__)  # type: ignore[attr-defined]
        self.name = function.__name__  # type: ignore[attr-defined]
        self.compiled: Callable[..., Tensor] = torch.compile(own, **_options(model))
        self.known: set[bool] = set()
        self.seconds = compile_seconds(model)

    def __call__(self, model: Llama, first_B: Tensor, *others: object) -> Tensor:
        """What the function returns.

        Raises:
            CannotCompile: at the first call, before anything was computed.
        """
        single = len(first_B) == 1
        if single in self.known:
            return self.compiled(model, first_B, *others)
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        logger.warning("compiling, once, about %.0f s, less if it is on disk already", self.seconds)
        started = time.perf_counter()
        remove_torn_libraries(Path(cache_dir()))
        try:
            result = self._anew_if_broken(model, first_B, *others)
        except (TorchDynamoException, OSError, ImportError) as error:
            raise CannotCompile(_first_line(error)) from error
        self.known.add(single)
        logger.info("compiled %s in %.1f s", self.name, time.perf_counter() - started)
        return result

    def _anew_if_broken(self, *arguments: Any) -> Tensor:
        """The first call, in a new folder if the files of the old one fail, as those of a killed compilation do."""
        from torch._dynamo.exc import BackendCompilerFailed
        from torch._inductor.runtime.cache_dir_utils import cache_dir
        from torch._inductor.utils import fresh_cache

        try:
            return self.compiled(*arguments)
        except (BackendCompilerFailed, OSError, ImportError) as error:  # from the compiler, its linker, or loading
            logger.warning(
                "compiled code on disk cannot be used (%s), so %s is compiled anew; if this comes again, remove %s",
                _first_line(error), self.name, cache_dir(),
            )  # fmt: skip
        with fresh_cache():
            return self.compiled(*arguments)


def _first_line(error: Exception) -> str:
    """What went wrong, without the pages that the compiler prints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__


def _of_the_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's checks stay: not those of the network, whose code this is alone.

    They would take longer than the step itself of a small network.
    """
    return ["model" not in guard.name and not guard.is_global for guard in guards]


def _options(model: Llama) -> dict[str, Any]:
    """Arguments of `torch.compile`."""
    if model.device.type == "cuda":  # CUDA graphs, one for each extent
        return {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}
    # A wrapper in C++ instead of Python halves the time of a small network's step.
    options = {"cpp_wrapper": True, "guard_filter_fn": _of_the_inputs}
    if is_small(model):
        options["cpp.threads"] = 1
    return {"fullgraph": True, "dynamic": True, "options": options}


_COMPILED: weakref.WeakKeyDictionary[nn.Module, dict[Callable[..., Tensor], Compiled]] = weakref.WeakKeyDictionary()
"""By the layers of a network, which `Llama.with_images` shares."""


def compiled(function: Callable[..., Tensor], model: Llama) -> Compiled:
    """Return a function of a network, compiled; the same object at each call.

    Raises:
        UserError: there is no compiler.
    """
    require_compiler(model.device)
    of_model = _COMPILED.setdefault(model.model, {})
    if function not in of_model:
        of_model[function] = Compiled(function, model)
    return of_model[function]


def is_compiled(function: Callable[..., Tensor], model: Llama, texts: int) -> bool:
    """Whether this process has compiled a function of a network, for one text or for several."""
    found = _COMPILED.get(model.model, {}).get(function)
    return found is not None and (texts == 1) in found.known


def steps_whole(model: Llama) -> bool:
    """Whether the one-token step is compiled as a whole: of a small network, whose layers take less time than the calls
    of their code, and on accelerators, which record the whole step. Otherwise its layers are packages.
    """
    return model.device.type != "cpu" or is_small(model)


def with_packages(model: Llama, *, making: bool) -> Llama:
    """The same network, whose passes take packages of its layers.

    Args:
        model: the network; returned as it is if it takes them already, and if none shall be made where none is kept or
            can serve it.
        making: whether those that are not on disk are made.

    Raises:
        UserError: some shall be made, but there is no compiler, or none can serve the network.
    """
    if making:
        require_compiler(model.device)
    if model.compiled_layers is not None and model.compiled_layers.making >= making:
        return model
    prepared = model
    if model.device.type == "cpu" and model.backend in ("auto", "sdpa") and (making or packages_kept()):
        threads = 1 if is_small(model) else torch.get_num_threads()
        prepared = model.with_compiled_layers(threads, making=making)
    if making and prepared is model:
        raise UserError(
            f"compile is True, but layers of this network are not compiled on {model.device.type} with attention "
            f"{model.backend!r}: leave it out."
        )
    return prepared


# ---- when it pays ----------------------------------------------------------------------------------


def compile_seconds(model: Llama) -> float:
    """Estimate the time that compiling a step takes where nothing is on disk yet."""
    if not steps_whole(model):
        return 2 * PACKAGE_SECONDS  # a layer, and the head
    of_step = COMPILE_SECONDS + COMPILE_SECONDS_A_LAYER * model.config.num_hidden_layers
    return 2 * of_step if is_small(model) else of_step


def break_even(model: Llama, texts: int) -> int:
    """Estimate the number of steps from which on compiling saves more time than it takes, on a CPU.

    Args:
        model: the network.
        texts: that are written at a time.
    """
    of_layer = SAVED_MS_A_LAYER if steps_whole(model) else SAVED_MS_A_PACKAGE
    saved_ms = of_layer * model.config.num_hidden_layers
    if texts == 1:
        weights = (*model.parameters(), *model.buffers())
        saved_ms += SAVED_MS_A_MEBIBYTE * sum(weight.nbytes for weight in weights) / 2**20
    return math.ceil(1000 * compile_seconds(model) / saved_ms)


def pays_to_compile(function: Callable[..., Tensor], model: Llama, texts: int, steps: int) -> bool:
    """Whether to compile a function of the one-token step unasked, which is decided before anything is written.

    Args:
        function: that is called for each step.
        model: the network.
        texts: that are written at a time.
        steps: that may be taken; ends of texts cannot be foreseen.

    Returns:
        Whether this process has compiled it already, or so many steps have been measured to make up for compiling. On
        accelerators that has not been measured.
    """
    if not compiler_at_hand(model.device) or model.backend not in ("auto", "sdpa"):
        return False
    on_cpu = model.device.type == "cpu"
    return is_compiled(function, model, texts) or (on_cpu and steps >= break_even(model, texts))
