"""Hugging Face folders: `config.json` beside safetensors, whole or in shards.

The tensors of a plain Llama have the same names there and here, so no map of names is needed. A network that
`LlamaForCausalLM` can express is written as one; any other is written under `model_type: "anyorder"`, with every
field of `ModelConfig`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyorder.checkpoints.weights import DTYPES, Checkpoint, listed
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import ROTARY_EMBEDDINGS, Rotary

Json = dict[str, Any]

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

ARCHITECTURES = {"llama": "LlamaForCausalLM", "anyorder": "AnyOrderForCausalLM"}
"""What is read and written: the class in `architectures`, by `model_type`."""

LLAMA_REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
"""Fields that a Llama's config.json must have; transformers would take those of Llama 7B."""

LLAMA_DEFAULTS: Json = {
    "num_key_value_heads": 0,
    "head_dim": 0,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
"""Fields that may be missing or null, with transformers' values; 0 is ours for "not given"."""

LLAMA_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
}
"""Fields that change the network in ways that are not supported: what they may be."""

SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}

IGNORED_TENSORS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Tables that old versions of transformers stored; they follow from the configuration."""


# ------------------------------------------------------------------------------------------------ configuration


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a folder.

    Raises:
        UserError: there is none, or it describes a network that is not supported.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"folder {str(folder)!r} has no {CONFIG}: give the folder of a Hugging Face checkpoint.")
    fields = _read_json(folder / CONFIG)
    if (folder / GENERATION_CONFIG).is_file():
        # Where both say what ends a text, transformers' `generate` follows this file.
        eos = _read_json(folder / GENERATION_CONFIG).get("eos_token_id")
        fields |= {} if eos is None or fields.get("model_type") == "anyorder" else {"eos_token_id": eos}
    try:
        return config_from_json(fields)
    except UserError as error:
        raise UserError(f"{str(folder / CONFIG)!r}: {error}") from error


def config_from_json(fields: Json) -> ModelConfig:
    """The configuration that a `config.json` describes.

    Raises:
        UserError: it describes a network that is not supported, or a field is missing or wrong.
    """
    model_type = fields.get("model_type")
    architectures = fields.get("architectures") or list(ARCHITECTURES.values())
    if model_type not in ARCHITECTURES:
        raise UserError(f"model_type is {model_type!r}: this version reads {listed(ARCHITECTURES)}.")
    if not isinstance(architectures, list) or not set(architectures) & set(ARCHITECTURES.values()):
        raise UserError(f"architectures is {architectures!r}: this version reads {listed(ARCHITECTURES.values())}.")
    return _from_llama(fields) if model_type == "llama" else _from_anyorder(fields)


def config_to_json(config: ModelConfig) -> Json:
    """A `config.json`: a plain Llama's where one can express the network, ours otherwise."""
    llama = _to_llama(config)
    return llama if _is_plain_llama(config, llama) else _to_anyorder(config)


def _from_llama(fields: Json) -> ModelConfig:
    for name, allowed in LLAMA_FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise UserError(f"{name} is {fields[name]!r}: this version reads networks with {allowed[0]!r} only.")
    known = {name: fields.get(name) for name in LLAMA_REQUIRED}
    known |= {name: default if fields.get(name) is None else fields[name] for name, default in LLAMA_DEFAULTS.items()}
    eos = fields.get("eos_token_id", 2)
    return _checked(
        known
        | {
            "rotary": rotary_from_json(fields),
            "attention_output_bias": known["attention_bias"],
            "bos_token_id": fields.get("bos_token_id", 1),
            "eos_token_ids": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            "pad_token_id": fields.get("pad_token_id"),
        }
    )


def _to_llama(config: ModelConfig) -> Json:
    """A plain Llama's fields; what it cannot express is lost."""
    rotary = rotary_to_json(config.rotary)
    # Older readers know `rope_theta` and `rope_scaling` only; transformers 5 reads both and finds the same.
    scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
    eos = config.eos_token_ids
    return {
        "model_type": "llama",
        "architectures": [ARCHITECTURES["llama"]],
        **{name: getattr(config, name) for name in (*LLAMA_REQUIRED, *LLAMA_DEFAULTS)},
        "hidden_act": "silu",
        "rope_parameters": rotary,
        "rope_theta": rotary["rope_theta"],
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
        "pad_token_id": config.pad_token_id,
    }


def _is_plain_llama(config: ModelConfig, llama: Json) -> bool:
    """Whether `llama` says all that `config` says, and transformers accepts it."""
    # In which precision angles are computed is no part of the network.
    exact = config.replace(rotary=dataclasses.replace(config.rotary, float32_angles=False))
    accepted = config.hidden_size % config.num_attention_heads == 0 and 0 <= config.initializer_range <= 1
    return accepted and _from_llama(llama) == exact


def _from_anyorder(fields: Json) -> ModelConfig:
    ours = {field.name for field in dataclasses.fields(ModelConfig)}
    beside = {"model_type", "architectures", "dtype", "torch_dtype", "transformers_version"}
    for name in fields:
        if name not in ours | beside:
            raise UserError(f"field {name!r} is unknown: correct its spelling, or delete it.")
    known = {name: value for name, value in fields.items() if name in ours}
    known["rotary"] = rotary_from_json({"rope_parameters": fields.get("rotary")})
    for name in ("layers", "eos_token_ids"):
        known[name] = known.get(name) or []
        if not isinstance(known[name], list):
            raise UserError(f"field {name!r} is {known[name]!r}: give a list.")
    known["layers"] = tuple(map(_layer_kind, known["layers"]))
    known["eos_token_ids"] = tuple(known["eos_token_ids"])
    return _checked(known)


def _layer_kind(fields: Any) -> LayerKind:
    kinds = typing.get_type_hints(LayerKind)
    if not isinstance(fields, dict) or not set(fields) <= set(kinds):
        raise UserError(f"field 'layers' has the entry {fields!r}: give objects with {listed(kinds)}.")
    _check_types(fields, kinds)
    return LayerKind(**fields)


def _to_anyorder(config: ModelConfig) -> Json:
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        "model_type": "anyorder",
        "architectures": [ARCHITECTURES["anyorder"]],
        **fields,
        "rotary": rotary_to_json(config.rotary) | {"float32_angles": config.rotary.float32_angles},
        "layers": [dataclasses.asdict(layer) for layer in config.layers],
        "eos_token_ids": list(config.eos_token_ids),
    }


def _checked(fields: Json) -> ModelConfig:
    """A configuration, once each field is known to have the right type."""
    for name in LLAMA_REQUIRED:
        if fields.get(name) is None:
            raise UserError(f"field {name!r} is missing: add it.")
    _check_types(fields, typing.get_type_hints(ModelConfig))
    return ModelConfig(**fields)


def _check_types(fields: Json, kinds: Json) -> None:
    for name, value in fields.items():
        if not _has_type(value, kinds[name]):
            raise UserError(f"field {name!r} is {value!r}: give {_type_name(kinds[name])}.")


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {listed(typing.get_args(kind))}"
    return _TYPE_NAMES.get(kind, "whole numbers")


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    int | None: "a whole number or null",
    str | None: "a name or null",
}


def _has_type(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return all(_has_type(item, typing.get_args(kind)[0]) for item in value)
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if isinstance(value, bool):  # which Python counts among the integers
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


# ------------------------------------------------------------------------------------------------ rotary


def rotary_from_json(fields: Json) -> Rotary:
    """The rotary embedding, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    Raises:
        UserError: no base is found, two forms disagree, or the type is unknown.
    """
    forms = [form for name in ("rope_parameters", "rope_scaling") if (form := fields.get(name)) is not None]
    for form in forms:
        if not isinstance(form, Mapping):
            raise UserError(f"rope_parameters or rope_scaling is {form!r}: give an object with rope_type.")
    theta = _agreed("rope_theta", [form.get("rope_theta") for form in (*forms, fields)])
    if theta is None:
        raise UserError("rope_theta is missing, in rope_parameters too: add the base that was used in training.")
    # Before transformers 4.43 the type was called `type`.
    rope_type = _agreed("rope_type", [form.get("rope_type", form.get("type")) for form in forms]) or "default"
    rope_type = "rotary" if rope_type == "default" else rope_type
    if rope_type not in ROTARY_EMBEDDINGS:
        raise UserError(f"rope_type is {rope_type!r}: this version knows {listed(ROTARY_EMBEDDINGS)}.")
    if any(form.get("partial_rotary_factor", 1) != 1 for form in forms):
        raise UserError("partial_rotary_factor is not 1: this version reads networks that rotate whole heads only.")
    given: Json = {"theta": theta}
    for field in dataclasses.fields(ROTARY_EMBEDDINGS[rope_type]):  # type: ignore[arg-type]
        if field.name != "theta":
            value = _agreed(field.name, [form.get(field.name) for form in forms])
            if value is None and field.name == "original_max_position_embeddings":
                value = fields.get("max_position_embeddings")  # as transformers does
            if value is None and field.default is dataclasses.MISSING:
                raise UserError(f"rope field {field.name!r} is missing, which rope_type {rope_type!r} needs: add it.")
            given |= {} if value is None else {field.name: value}
    for name, value in given.items():
        kind = bool if name in ("float32_angles", "truncate") else float
        if not _has_type(value, kind):
            raise UserError(f"rope field {'rope_theta' if name == 'theta' else name!r} is {value!r}: give a number.")
    return ROTARY_EMBEDDINGS[rope_type](**given)


def rotary_to_json(rotary: Rotary) -> Json:
    """`rope_parameters` of a rotary embedding, without the precision of its angles."""
    rope_type = next(name for name, kind in ROTARY_EMBEDDINGS.items() if kind is type(rotary))
    rope_type = "default" if rope_type == "rotary" else rope_type
    fields = {name: value for name, value in dataclasses.asdict(rotary).items() if value is not None}
    del fields["float32_angles"]
    return {"rope_type": rope_type, "rope_theta": fields.pop("theta"), **fields}


def _agreed(name: str, values: list[Any]) -> Any:
    """The one value among those given, None if none is."""
    given = [value for value in values if value is not None]
    if any(value != given[0] for value in given):
        raise UserError(f"{name} is given as {' and as '.join(map(repr, given))}: keep the one that is right.")
    return given[0] if given else None


# ------------------------------------------------------------------------------------------------ weights


def read(folder: Path) -> Checkpoint:
    """Opens a folder: configuration and headers.

    Raises:
        UserError: a file is missing, damaged or of a kind that is not supported.
    """
    config = read_config(folder)
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for file in _weight_files(folder):
        for name, shape, dtype in _header(file):
            if name in files:
                raise UserError(f"tensor {name!r} is in {str(files[name])!r} and in {file.name!r}: delete one of them.")
            if dtype not in SAFETENSORS_DTYPES:
                known = listed(DTYPES)
                raise UserError(f"tensor {name!r} in {str(file)!r} is stored as {dtype}: store it as one of {known}.")
            files[name], shapes[name], dtypes[name] = file, shape, DTYPES[SAFETENSORS_DTYPES[dtype]]
    _check_index(folder, files)

    def read_tensor(name: str) -> Tensor:
        # Opened anew for each tensor: pages of the file stay in memory while it is open. A copy, since tensors in the
        # file need not be aligned, and the file may change.
        with safe_open(files[name], framework="pt") as file:
            stored: Tensor = file.get_tensor(name)
            return stored.clone()

    return Checkpoint(path=folder, config=config, shapes=shapes, dtypes=dtypes, read=read_tensor)


def write(model: Llama, folder: Path, max_shard_size: int | None = None) -> None:
    """Writes `config.json` and the weights into an existing empty folder.

    Args:
        model: the network; its weights are written in their dtype.
        folder: where to.
        max_shard_size: bytes that a file of weights may have, where its tensors allow it; one file unless given.

    Raises:
        UserError: `max_shard_size` is no size.
    """
    if max_shard_size is not None and max_shard_size <= 0:
        raise UserError(f"max_shard_size is {max_shard_size}: give a number of bytes above 0, or None for one file.")
    dtype = str(model.dtype).removeprefix("torch.")
    _write_json(folder / CONFIG, config_to_json(model.config) | {"dtype": dtype, "torch_dtype": dtype})
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}  # tied ones once
    shards = list(_shards(weights, max_shard_size))
    if len(shards) == 1:
        return _save(shards[0], folder / WEIGHTS)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, folder / file)
        where |= dict.fromkeys(shard, file)
    total = sum(weight.nbytes for weight in weights.values())
    return _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _shards(weights: Mapping[str, Tensor], max_size: int | None) -> Iterator[dict[str, Tensor]]:
    """Consecutive tensors of at most `max_size` bytes together, but one at least."""
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
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    pickled = any(folder.glob("pytorch_model*.bin"))
    remedy = "save it as safetensors first, since pickled files can run code" if pickled else "complete the folder"
    raise UserError(f"folder {str(folder)!r} has neither {WEIGHTS} nor {INDEX}: {remedy}.")


def _weight_map(folder: Path) -> dict[str, str]:
    where = _read_json(folder / INDEX).get("weight_map")
    names = where.values() if isinstance(where, dict) and where else [None]
    if not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise UserError(f"{str(folder / INDEX)!r} has no weight_map of tensors to files beside it: fetch it again.")
    return typing.cast(dict[str, str], where)


def _check_index(folder: Path, files: Mapping[str, Path]) -> None:
    if (folder / WEIGHTS).is_file():
        return
    for name, file in _weight_map(folder).items():
        if not IGNORED_TENSORS.fullmatch(name) and files.get(name) != folder / file:
            raise UserError(
                f"tensor {name!r} is not in {file!r}, but {str(folder / INDEX)!r} says so: fetch them again."
            )


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of each tensor in a file, whose size is checked by the library."""
    if not file.is_file():
        raise UserError(f"weight file {str(file)!r} is missing: complete the folder.")
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if not IGNORED_TENSORS.fullmatch(name):
                    tensor = tensors.get_slice(name)
                    yield name, tuple(tensor.get_shape()), tensor.get_dtype()
    except SafetensorError as error:
        size = file.stat().st_size
        raise UserError(
            f"weight file {str(file)!r} of {size} bytes is damaged or not whole ({error}): fetch it again."
        ) from error


# ------------------------------------------------------------------------------------------------ JSON


def _read_json(file: Path) -> Json:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(file)!r} is not JSON ({error}): fetch it again.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{str(file)!r} holds {type(fields).__name__}, not a JSON object: fetch it again.")
    return fields


def _write_json(file: Path, fields: Json) -> None:
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
