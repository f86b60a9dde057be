"""Layers as compiled code that is made once and then loaded: AOTInductor packages, kept on disk.

A package is one layer, or the head for a single row, with its weights as inputs, so that all layers of a kind share it,
and so do all networks of the same shape. Making one takes the compiler some seconds; loading it takes milliseconds and
imports nothing of the compiler, so that in a later process the first token is compiled already. Rows, masks and caches
are inputs, too: each mode takes the same packages.

Shape suffixes: B batch, R rows, E hidden size, Q rows that attend, K keys.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anyorder.attention.backends import SDPAMask, TracedMask
from anyorder.attention.mask import AttentionMask
from anyorder.model.block import Block
from anyorder.model.cache import LayerCache
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.view import View
from anyorder.utils.files import BeingWrittenError, TakenError, damage, seal, whole_folder

if TYPE_CHECKING:
    from anyorder.model.llama import Views

logger = logging.getLogger(__name__)

LARGEST_PAIRS = 2**16
"""Pairs of a row and a key, of each sample, up to which passes take packages: beyond, starting operations costs little,
and attention is better left to PyTorch's kernels, which never hold a whole matrix of scores."""

PACKAGE_SECONDS = 20.0
"""That making a package takes where nothing is on disk yet, on an idle machine."""

FILE = "package.pt2"


# ---- a layer as a function of tensors --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the code of a layer depends on beside its weights; all other sizes may change from pass to pass.

    Attributes:
        single_sample: whether the batch is of one sample.
        single_row: whether each sample has one row.
        keys: which rows are keys and values, too: all, only the first, or several first ones.
        cached: whether there is a cache.
        angles: by which queries and keys are turned, of each head; 0 where they are not.
        scaled: whether queries have a factor.
        biased: whether something is added to the scores.
    """

    single_sample: bool
    single_row: bool
    keys: str
    cached: bool
    angles: int
    scaled: bool
    biased: bool


class Inputs(NamedTuple):
    """What a package takes of a view: its form, and tensors in the order that `LayerFunction` takes them."""

    form: Form
    tensors: list[Tensor]

    @classmethod
    def of(cls, view: View, rows_BRE: Tensor) -> Inputs | None:
        """Return those of a view; None where there is no package for it."""
        batch, rows = rows_BRE.shape[:2]
        seen_or_bias = _seen_or_bias(view.mask)
        left_out = view.queries is not None or view.valid is not None or view.n_keys == 0
        if left_out or seen_or_bias is None or (view.slots is None and view.n_keys != rows):
            return None
        keys = view.n_keys if view.slots is None else view.extent
        if keys == 1 or rows * keys > LARGEST_PAIRS:  # the compiler takes a size that may change for at least 2
            return None
        empty_BQ = torch.zeros((), dtype=torch.bool) if view.mask.empty_BQ is None else view.mask.empty_BQ
        rotation = () if view.cos_sin is None else view.cos_sin
        scale = () if view.query_scale is None else (view.query_scale,)
        tensors = [one.expand(batch, rows, *one.shape[2:]) for one in (*rotation, *scale)]
        tensors += [seen_or_bias.expand(batch, 1, rows, keys), empty_BQ.expand(batch, rows)]
        tensors += [] if view.slots is None else [view.slots]
        form = Form(
            single_sample=batch == 1,
            single_row=rows == 1,
            keys="all" if view.n_keys == rows else "one" if view.n_keys == 1 else "some",
            cached=view.slots is not None,
            angles=rotation[0].shape[-1] if rotation else 0,
            scaled=bool(scale),
            biased=seen_or_bias.dtype != torch.bool,
        )
        return cls(form, [one.contiguous() for one in tensors])


def _seen_or_bias(mask: AttentionMask) -> Tensor | None:
    """Return the pairs that a mask shows, or a bias that hides the others; None of masks that packages do not know."""
    if not isinstance(mask, SDPAMask) or mask.causal:
        return None
    return torch.ones((), dtype=torch.bool) if mask.seen_or_bias_B1QK is None else mask.seen_or_bias_B1QK


class LayerFunction(nn.Module):
    """A layer as a function of tensors alone.

    Args:
        layer: any layer of the shape; the weights are given at each call.
        form: of the passes.
    """

    def __init__(self, layer: Block, form: Form) -> None:
        super().__init__()
        self.layer = (layer,)  # hidden from `nn.Module`, for which its weights would be part of the function
        self.form = form

    def forward(self, weights: Sequence[Tensor], rows_BRE: Tensor, of_view: Sequence[Tensor]) -> Tensor:
        """Return the rows behind the layer, `[batch, rows, hidden]`.

        Args:
            weights: as `weights_of` has them.
            rows_BRE: those before it.
            of_view: the tensors of `Inputs`; with a cache also its keys and values, which are changed in place.
        """
        [layer], form, given = self.layer, self.form, list(of_view)
        cos_sin = (given.pop(0), given.pop(0)) if form.angles else None
        query_scale = given.pop(0) if form.scaled else None
        pairs_B1QK, empty_BQ = given.pop(0), given.pop(0)
        slots_BK = given.pop(0) if form.cached else None
        kv = LayerCache(*given) if form.cached else None
        seen_B1QK, bias_B1QK = pairs_B1QK, None
        if form.biased:
            seen_B1QK = pairs_B1QK > -torch.inf
            bias_B1QK = pairs_B1QK.masked_fill(~seen_B1QK, 0)
        view = View(
            n_keys=rows_BRE.shape[1] if form.keys == "all" or slots_BK is None else slots_BK.shape[1],
            mask=TracedMask(seen_B1QK=seen_B1QK, bias_B1QK=bias_B1QK, empty_BQ=empty_BQ),
            cos_sin=cos_sin,
            query_scale=query_scale,
            slots=slots_BK,
            extent=pairs_B1QK.shape[-1],
        )
        out_BRE: Tensor = functional_call(
            layer, dict(zip(weights_of(layer), weights, strict=True)), (rows_BRE, view, kv)
        )
        return out_BRE


def weights_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a layer by name."""
    return dict(layer.named_parameters()) | dict(layer.named_buffers())


def make(layer: Block, config: ModelConfig, form: Form, dtype: torch.dtype, folder: Path, threads: int) -> None:
    """Compile a layer into a package.

    Args:
        layer: the layer.
        config: of its network.
        form: of the passes.
        dtype: of the rows.
        folder: where the package is written.
        threads: that its loops use.

    Raises:
        Exception: the compiler fails.
    """
    from torch.export import Dim

    # Sizes that may change are all different, so that the compiler takes no two of them for the same.
    batch = (1, {}) if form.single_sample else (3, {0: Dim.DYNAMIC})
    rows = (1, {}) if form.single_row else (7, {1: Dim.DYNAMIC})
    keys = rows if form.keys == "all" else (1, {}) if form.keys == "one" else (5, {1: Dim.DYNAMIC})
    extent, capacity = 11 if form.cached else rows[0], 13
    of_row, of_head = {**batch[1], **rows[1]}, (config.num_key_value_heads, config.head_dim)
    pairs = {**batch[1], **({2: Dim.DYNAMIC} if rows[1] else {}), 3: Dim.DYNAMIC}
    examples: list[tuple[Tensor, dict[int, Any]]] = []

    def add(size: Sequence[int], kind: torch.dtype, changing: dict[int, Any]) -> None:
        examples.append((torch.zeros(tuple(size), dtype=kind), changing))

    add((batch[0], rows[0], config.hidden_size), dtype, of_row)
    for last in [form.angles] * 2 * bool(form.angles) + [1] * form.scaled:
        add((batch[0], rows[0], 1, last), dtype, of_row)
    add((batch[0], 1, rows[0], extent), torch.float64 if form.biased else torch.bool, pairs)
    add((batch[0], rows[0]), torch.bool, of_row)
    if form.cached:
        add((batch[0], keys[0]), torch.long, {**batch[1], **keys[1]})
        for _ in ("keys", "values"):
            add((batch[0], capacity, *of_head), dtype, {**batch[1], 1: Dim.DYNAMIC})
    (rows_BRE, of_rows), *of_view = examples
    given = (rows_BRE, [tensor for tensor, _ in of_view])
    _compile(
        LayerFunction(layer, form), layer, given, (of_rows, [changing for _, changing in of_view]), folder, threads
    )


class HeadFunction(nn.Module):
    """The projection of one row to scores, as a function of tensors alone.

    Args:
        head: the module, whose weights are given at each call.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = (head,)

    def forward(self, weights: Sequence[Tensor], row_1E: Tensor) -> Tensor:
        """Return scores `[1, vocabulary]` of a row `[1, hidden]`."""
        [head] = self.head
        scores_1V: Tensor = functional_call(head, dict(zip(weights_of(head), weights, strict=True)), (row_1E,))
        return scores_1V


def make_head(head: nn.Module, width: int, dtype: torch.dtype, folder: Path, threads: int) -> None:
    """Compile the projection of one row to scores into a package.

    Args:
        head: the module.
        width: of the row.
        dtype, folder, threads: see `make`.

    Raises:
        Exception: the compiler fails.
    """
    _compile(HeadFunction(head), head, (torch.zeros((1, width), dtype=dtype),), ({},), folder, threads)


def _compile(
    function: nn.Module,
    module: nn.Module,
    given: tuple[Any, ...],
    changing: tuple[Any, ...],
    folder: Path,
    threads: int,
) -> None:
    """Compile a function of the weights of a module and of what is given, whose changing sizes are named."""
    from torch._inductor import aoti_compile_and_package
    from torch.export import export

    weights = list(weights_of(module).values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, at its own code
        program = export(
            function, (weights, *given), dynamic_shapes=([None] * len(weights), *changing), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
        aoti_compile_and_package(program, package_path=str(folder / FILE), inductor_configs={"cpp.threads": threads})


# ---- on disk ---------------------------------------------------------------------------------------


class Package:
    """The code of a layer, loaded.

    Args:
        file: that `make` wrote.
    """

    def __init__(self, file: Path) -> None:
        # What `torch._inductor.aoti_load_package` calls, without importing the compiler, which takes seconds.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)  # type: ignore[attr-defined]

    def __call__(self, weights: Sequence[Tensor], *given: Tensor) -> Tensor:
        """Return what the function of the package does."""
        [out] = self._loader.run([*weights, *given])
        result: Tensor = out
        return result


def folder_of_packages() -> Path:
    """Return where packages are kept: `anyorder/layers` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyorder" / "layers"


def packages_kept() -> set[str]:
    """Return the names of the packages that are on disk."""
    folder = folder_of_packages()
    return {place.name for place in folder.iterdir() if not place.name.startswith(".")} if folder.is_dir() else set()


@functools.cache
def _machine() -> dict[str, Any]:
    """Return what compiled code depends on beside the network: the machine, PyTorch, and our own code."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines() if cpu.exists() else []
    own = hashlib.sha256()
    for room in ("attention", "model"):
        for file in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            own.update(file.read_bytes())
    return {
        "machine": platform.machine(), "system": platform.system(), "torch": torch.__version__, "code": own.hexdigest(),
        "flags": next((line for line in lines if line.startswith(("flags", "Features"))), ""),
    }  # fmt: skip


def name_of(module: nn.Module, about: Mapping[str, Any], dtype: torch.dtype, threads: int) -> str:
    """Return the name of the package of a module: equal where one can serve for the other.

    Args:
        module: names, sizes, types and strides of its weights count.
        about: what its code depends on besides, plain values.
        dtype: of the rows.
        threads: that loops use.
    """
    everything = {**_machine(), **about, "weights": _sizes(module), "dtype": str(dtype), "threads": threads}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def _sizes(module: nn.Module) -> list[tuple[str, list[int], list[int], str]]:
    """Names, sizes, strides and types of the weights of a module, all of which its code relies on."""
    return [
        (name, list(weight.shape), list(weight.stride()), str(weight.dtype))
        for name, weight in weights_of(module).items()
    ]


_LOADED: dict[Path, Package] = {}
"""By folder."""


def loaded(folder: Path) -> Package | None:
    """Load a package, once in a process; None if there is none, or it is damaged."""
    if folder in _LOADED:
        return _LOADED[folder]
    if not folder.is_dir():
        return None
    wrong = damage(folder)
    if wrong is None:
        try:
            return _LOADED.setdefault(folder, Package(folder / FILE))
        except RuntimeError as error:
            wrong = _first_line(error)
    logger.warning("a compiled layer is not used, because %s: compile it again, or remove the folder %s", wrong, folder)
    return None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ---- in a pass -------------------------------------------------------------------------------------


class CompiledLayers:
    """The packages of a network, found as passes need them; for as long as its modules stay the same.

    Args:
        config: of the network.
        layers: of the network.
        head: the projection to scores.
        threads: that loops use.
        making: whether a package that is not on disk is made, the first time that it is needed.

    Attributes:
        making: see above.
    """

    def __init__(
        self, config: ModelConfig, layers: Sequence[Block], head: nn.Module, threads: int, *, making: bool
    ) -> None:
        self._config = config
        self._layers = layers
        self._head = head
        self._threads = threads
        self.making = making
        self._modules = [module for layer in (*layers, head) for module in layer.modules()]
        self._weights = [list(weights_of(layer).values()) for layer in layers]
        self._weights_of_head = list(weights_of(head).values())
        self._found: dict[tuple[LayerKind | str, Form | None, torch.dtype], Package | None] = {}

    @property
    def missing(self) -> int:
        """Number of packages that passes needed, and that were neither on disk nor could be made."""
        return sum(package is None for package in self._found.values())

    def of_pass(self, rows_BRE: Tensor, views: Views) -> dict[LayerKind, CompiledLayer]:
        """Return compiled layers for a pass, of those kinds that have one.

        Args:
            rows_BRE: before the first layer.
            views: of the pass.
        """
        if not self._may() or 0 in rows_BRE.shape:
            return {}
        found: dict[LayerKind, CompiledLayer] = {}
        for kind, view in views.items():
            if isinstance(kind, str) or kind.experts:
                continue
            inputs = Inputs.of(view, rows_BRE)
            if inputs is None:
                continue
            key = (kind, inputs.form, rows_BRE.dtype)
            if key not in self._found:
                self._found[key] = self._layer(kind, inputs.form, rows_BRE.dtype)
            package = self._found[key]
            if package is not None:
                found[kind] = CompiledLayer(package, self._weights, inputs.tensors)
        return found

    def scores(self, rows: Tensor) -> Tensor | None:
        """Return the scores of a single row `[..., hidden]`, `[..., vocabulary]`; None where that is not compiled."""
        if not self._may() or math.prod(rows.shape[:-1]) != 1:
            return None
        key = ("head", None, rows.dtype)
        if key not in self._found:
            make = functools.partial(make_head, self._head, rows.shape[-1], rows.dtype)
            name = name_of(self._head, {"head": type(self._head).__name__}, rows.dtype, self._threads)
            self._found[key] = self._find(name, make)
        package = self._found[key]
        if package is None:
            return None
        return package(self._weights_of_head, rows.reshape(1, -1)).view(*rows.shape[:-1], -1)

    def _may(self) -> bool:
        """Whether a pass may take packages now: without gradients and autocast, and where nobody listens to modules."""
        plain = not (torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        return plain and not _hooked(self._modules)

    def _layer(self, kind: LayerKind, form: Form, dtype: torch.dtype) -> Package | None:
        config = self._config
        layer, *others = (layer for layer, own in zip(self._layers, config.layers, strict=True) if own == kind)
        if any(_sizes(other) != _sizes(layer) for other in others):
            return None  # such as where some layers alone are rounded to int8
        about = {**dataclasses.asdict(form), "config": (config.head_dim, config.qk_norm, config.rms_norm_eps)}
        return self._find(
            name_of(layer, about, dtype, self._threads), functools.partial(make, layer, config, form, dtype)
        )

    def _find(self, name: str, make: Callable[[Path, int], None]) -> Package | None:
        """Return the package of a name; make it if there is none and it shall be made."""
        folder = folder_of_packages() / name
        package = loaded(folder)
        if package is not None or not self.making:
            return package
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        logger.warning("compiling a layer, once, about %.0f s", PACKAGE_SECONDS)
        started = time.perf_counter()
        try:
            with whole_folder(folder) as partial:
                make(partial, self._threads)
                seal(partial)
        except (TakenError, BeingWrittenError):  # another process has made it meanwhile, or is about to
            return loaded(folder)
        except Exception as error:  # the compiler's own have no common class
            logger.warning("writing goes on uncompiled: a layer cannot be compiled (%s)", _first_line(error))
            return None
        logger.info("compiled a layer in %.1f s", time.perf_counter() - started)
        return loaded(folder)


class CompiledLayer(NamedTuple):
    """The layers of one kind in one pass."""

    package: Package
    weights: Sequence[Sequence[Tensor]]
    of_view: Sequence[Tensor]

    def __call__(self, index: int, rows_BRE: Tensor, kv: LayerCache | None) -> Tensor:
        """Return the rows behind a layer of the network, `kv` being its part of the cache."""
        of_cache = () if kv is None else (kv.keys, kv.values)
        return self.package(self.weights[index], rows_BRE.contiguous(), *self.of_view, *of_cache)


def can_be_packages(layers: Sequence[nn.Module]) -> bool:
    """Whether layers are on a CPU, of our own modules, without hooks or adapters, and all weights are whole tensors."""
    modules = [module for layer in layers for module in layer.modules()]
    weights = [weight for layer in layers for weight in weights_of(layer).values()]
    own = all(type(module).__module__.startswith(("anyorder.model.", "torch.nn.modules.")) for module in modules)
    plain = all(type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu" for weight in weights)
    return own and plain and not _hooked(modules)


def _hooked(modules: Sequence[nn.Module]) -> bool:
    """Whether somebody listens to modules, such as those who measure attention."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
