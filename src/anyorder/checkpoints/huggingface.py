"""Hugging Face folders: `config.json` beside safetensors, or `pytorch_model.bin`, whole or in shards.

Tensors have the same names there and here, but for those that an architecture or a form has rules about (`layouts.py`).
"""

from __future__ import annotations

import contextlib
import functools
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyorder.checkpoints.config_json import (
    config_from_json,
    config_to_json,
    ends_to_json,
    form_to_json,
    rules_of,
)
from anyorder.checkpoints.contents import EMBEDDING, contents_of
from anyorder.checkpoints.json_files import read_json, write_json
from anyorder.checkpoints.layouts import Gathered, Rule, stored
from anyorder.checkpoints.masked_diffusion import Form, form_of
from anyorder.checkpoints.pickled import load_pickled
from anyorder.checkpoints.places import is_file
from anyorder.checkpoints.published_mask import with_tokenizers_mask
from anyorder.checkpoints.vision_fields import PREPROCESSOR, preprocessor_json, with_preprocessor
from anyorder.checkpoints.weights import DTYPES, FEW_LAYERS, Checkpoint, Index, blank, check_layers, listed
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.utils.annotations import shown

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

PICKLED = "pytorch_model.bin"
"""Weights as folders had them before safetensors; read where there are no safetensors."""

PICKLED_SUFFIX = ".bin"

INDICES = {WEIGHTS: INDEX, PICKLED: "pytorch_model.bin.index.json"}
"""What says which shard each tensor is in, by the name of the file that is not in shards."""

SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}

HEAD = "lm_head.weight"

IGNORED_TENSORS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Tables that old versions of transformers stored; they follow from the configuration."""


class Described(NamedTuple):
    """What a `config.json` says.

    Attributes:
        config: the network.
        form: the form in which a masked diffusion model is published, if it is one.
        rules: what the tensors are here, but for those that are the same.
    """

    config: ModelConfig
    form: Form | None
    rules: tuple[Rule, ...]


def read_config(folder: Path) -> Described:
    """What the `config.json` of a folder says.

    Raises:
        UserError: there is none, or it describes a network that is not supported.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(_no_config(folder))
    fields = read_json(folder / CONFIG)
    if (folder / GENERATION_CONFIG).is_file():
        # Where both say what ends a text, transformers' `generate` follows this file.
        eos = read_json(folder / GENERATION_CONFIG).get("eos_token_id")
        fields |= {} if eos is None else {"eos_token_id": eos, "eos_token_ids": None}
    fields = with_preprocessor(with_tokenizers_mask(fields, folder), folder)
    try:
        return Described(config_from_json(fields), form_of(fields), rules_of(fields))
    except UserError as error:
        raise UserError(f"{str(folder / CONFIG)!r}: {error}") from error


def _no_config(folder: Path) -> str:
    """Return what is wrong with a folder that has no configuration, and what to give instead."""
    if not any(folder.glob("checkpoints/checkpoint-*")):
        return f"folder {str(folder)!r} has no {CONFIG}: give the folder of a Hugging Face checkpoint."
    begun = f"folder {str(folder)!r} holds a training that has not ended: go on with resume"
    whole = [config.parent for config in folder.glob(f"checkpoints/checkpoint-*/{CONFIG}")]
    latest = max(whole, key=lambda place: place.stat().st_mtime, default=None)
    return f"{begun}." if latest is None else f"{begun}, or give {str(latest)!r}."


# ------------------------------------------------------------------------------------------------ weights


def read(folder: Path) -> Checkpoint:
    """Open a folder: configuration and headers.

    Raises:
        UserError: a file is missing, damaged or of a kind that is not supported.
    """
    config, form, rules = read_config(folder)
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for file in _weight_files(folder):
        for name, shape, dtype in _header(file):
            if name in files:
                raise UserError(f"tensor {name!r} is in {str(files[name])!r} and in {file.name!r}: delete one of them.")
            files[name], shapes[name], dtypes[name] = file, shape, dtype
    _check_index(folder, files)
    if form is not None and form.own_head and HEAD in files:
        config = config.replace(tie_word_embeddings=False)
    check_layers(folder, config.num_hidden_layers, len(shapes))
    expected = {name: tuple(weight.shape) for name, weight in blank(config).state_dict().items()} if rules else {}
    optional = (HEAD,) if config.tie_word_embeddings else ()
    gathered = Gathered(folder, rules, expected, shapes, config.head_dim, optional)
    dtypes |= {name: dtypes[theirs[0]] for name, theirs in gathered.names.items()}

    opened = functools.lru_cache(maxsize=1)(_pickled)  # mapped into memory

    def read_tensor(name: str, index: Index = ()) -> Tensor:
        with contextlib.ExitStack() as stack:
            # Opened anew for each tensor: pages of a file stay in memory while it is open.
            readers: dict[Path, Any] = {}

            def part(theirs: str, at: Index | slice | None) -> Tensor:
                file = files[theirs]
                if file.suffix == PICKLED_SUFFIX:
                    return opened(file)[theirs][at or ...]
                if file not in readers:
                    readers[file] = stack.enter_context(safe_open(file, framework="pt"))
                found: Tensor = readers[file].get_slice(theirs)[at or ...]
                return found

            if name in gathered.names:
                whole = gathered.read(
                    name, lambda theirs, rows: part(theirs, () if rows is None else (rows,)), dtypes[name]
                )
                return whole[index].clone() if index else whole
            # A copy, since tensors in the file need not be aligned, and the file may change.
            return part(name, index).clone()

    return Checkpoint(
        path=folder, config=config, shapes=gathered.shapes,
        dtypes={name: dtypes[name] for name in gathered.shapes}, read=read_tensor, read_part=read_tensor,
    )  # fmt: skip


def check_layers_of(folder: Path, layers: int | None = None) -> None:
    """Refuse a folder of many more layers than tensors; what is no folder with weights passes.

    Args:
        folder: of a checkpoint, or the id of a model on the hub.
        layers: of the network; those of the folder's configuration unless given.

    Raises:
        UserError: see above, or a file is damaged.
    """
    has_weights = any((folder / name).is_file() for names in INDICES.items() for name in names)
    if layers is None and has_weights and (folder / CONFIG).is_file():
        layers = read_config(folder)[0].num_hidden_layers
    if has_weights and layers is not None and layers > FEW_LAYERS:
        check_layers(folder, layers, sum(1 for file in _weight_files(folder) for _ in _entries(file)))


def write(model: Llama, folder: Path, max_shard_size: int | None = None, form: Form | None = None) -> None:
    """Write `config.json`, `generation_config.json` and the weights into an existing empty folder.

    Args:
        model: the network; its weights are written in their dtype.
        folder: where to.
        max_shard_size: bytes that a file of weights may have, where its tensors allow it; one file unless given.
        form: in which a masked diffusion model is published; the nearest architecture, or our own form, unless given.

    Raises:
        UserError: `max_shard_size` is no size, the form cannot express the network, or see `contents_of`.
    """
    if max_shard_size is not None and max_shard_size <= 0:
        raise UserError(f"max_shard_size is {max_shard_size}: give a number of bytes above 0, or None for one file.")
    contents = contents_of(model)
    config, tensors = contents.config, contents.tensors
    dtype = str(tensors[EMBEDDING].dtype).removeprefix("torch.")
    fields = config_to_json(config) if form is None else form_to_json(config, form)
    write_json(folder / CONFIG, fields | {"dtype": dtype, "torch_dtype": dtype})
    write_json(folder / GENERATION_CONFIG, generation_to_json(config))
    if config.vision is not None:
        write_json(folder / PREPROCESSOR, preprocessor_json(config.vision))
    weights = stored(tensors, rules_of(fields), config.head_dim)
    shards = list(_shards(weights, max_shard_size))
    if len(shards) == 1:
        return _save(shards[0], folder / WEIGHTS)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, folder / file)
        where |= dict.fromkeys(shard, file)
    total = sum(weight.nbytes for weight in weights.values())
    return write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def generation_to_json(config: ModelConfig) -> dict[str, Any]:
    """Return a `generation_config.json`: the special tokens, which transformers' `generate` takes from it."""
    special = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends_to_json(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
    }
    return {"_from_model_config": True} | {name: value for name, value in special.items() if value is not None}


def _shards(weights: Mapping[str, Tensor], max_size: int | None) -> Iterator[dict[str, Tensor]]:
    """Yield consecutive tensors of at most `max_size` bytes together, but one at least."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights.items():
        if shard and max_size is not None and size + weight.nbytes > max_size:
            yield shard
            shard, size = {}, 0
        shard[name] = weight
        size += weight.nbytes
    yield shard


def _save(weights: Mapping[str, Tensor], file: Path) -> None:
    # transformers refuses files without this word about the format.
    save_file({name: weight.cpu().contiguous() for name, weight in weights.items()}, file, {"format": "pt"})


def _weight_files(folder: Path) -> list[Path]:
    for whole, index in INDICES.items():
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return [folder / name for name in sorted(set(_weight_map(folder / index).values()))]
    raise UserError(f"folder {str(folder)!r} has neither {WEIGHTS} nor {INDEX}: complete the folder.")


def _weight_map(index: Path) -> dict[str, str]:
    where = read_json(index).get("weight_map")
    names = where.values() if isinstance(where, dict) and where else [None]
    if not all(isinstance(name, str) and name and name == Path(name).name for name in names):
        raise UserError(f"{str(index)!r} has no weight_map of tensors to files beside it: fetch it again.")
    return typing.cast(dict[str, str], where)


def _check_index(folder: Path, files: Mapping[str, Path]) -> None:
    whole = next(name for names in INDICES.items() for name in names if (folder / name).is_file())
    if whole in INDICES:
        return
    for name, file in _weight_map(folder / whole).items():
        if not IGNORED_TENSORS.fullmatch(name) and files.get(name) != folder / file:
            raise UserError(
                f"tensor {name!r} is not in {file!r}, but {str(folder / whole)!r} says so: fetch them again."
            )


def _pickled(file: Path) -> dict[str, Tensor]:
    return load_pickled(file, lambda name: not (isinstance(name, str) and IGNORED_TENSORS.fullmatch(name)))


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """Yield name, shape and dtype of each tensor in a file, whose size is checked by the library.

    Raises:
        UserError: the file is missing or damaged, or a dtype is none that weights are read in.
    """
    for name, shape, dtype in _entries(file):
        if isinstance(dtype, str) and dtype not in SAFETENSORS_DTYPES:
            known = listed(DTYPES)
            raise UserError(f"tensor {name!r} in {str(file)!r} is stored as {dtype}: store it as one of {known}.")
        yield name, shape, DTYPES[SAFETENSORS_DTYPES[dtype]] if isinstance(dtype, str) else dtype


def _entries(file: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype | str]]:
    """Do as `_header`, but yield dtypes of safetensors as in the file, whatever they are."""
    if file.suffix == PICKLED_SUFFIX and is_file(file):
        for name, tensor in _pickled(file).items():
            yield name, tuple(tensor.shape), tensor.dtype
        return
    if not is_file(file):  # also of names that no file can have
        place = str(file.parent)
        raise UserError(f"weight file {shown(file.name)} is missing: complete the folder {place!r}.")
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if not IGNORED_TENSORS.fullmatch(name):
                    tensor = tensors.get_slice(name)
                    yield name, tuple(tensor.get_shape()), tensor.get_dtype()
    except (SafetensorError, OSError, ValueError) as error:
        size = file.stat().st_size
        raise UserError(
            f"weight file {str(file)!r} of {size} bytes is damaged or not whole ({error}): fetch it again."
        ) from error
