"""`config.json`: a `ModelConfig` as transformers' architectures say it, or in our own words.

A network is written as the nearest architecture that can express it; any other under `model_type: "anyorder"`, with
every field of `ModelConfig`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from anyorder.checkpoints.architectures import (
    ARCHITECTURES,
    FIELD_TYPES,
    FIXED,
    NULLS,
    REQUIRED,
    Architecture,
    Json,
    architecture_of,
)
from anyorder.checkpoints.masked_diffusion import Form, form_of
from anyorder.checkpoints.weights import listed
from anyorder.errors import UserError
from anyorder.model.config import HEAD_LAYOUTS, LayerKind, ModelConfig
from anyorder.model.rope import (
    ROTARY_EMBEDDINGS,
    DynamicRotary,
    LinearRotary,
    Llama3Rotary,
    Rotary,
    YarnRotary,
    registered_name,
)
from anyorder.model.self_attention import SelfAttention, attention_class
from anyorder.ways import Way

Record = typing.TypeVar("Record", LayerKind, Way)

OURS = "AnyOrderForCausalLM"
"""The class of networks that no architecture of transformers can express, under `model_type: "anyorder"`."""


OF_TRANSFORMERS = (
    "dtype", "torch_dtype", "transformers_version", "use_cache", "output_hidden_states", "return_dict",
)  # fmt: skip
"""What transformers notes in our config.json beside the network."""


def config_from_json(fields: Json) -> ModelConfig:
    """The configuration that a `config.json` describes.

    Raises:
        UserError: it describes a network that is not supported, or a field is missing or wrong.
    """
    model_type = fields.get("model_type")
    form = form_of(model_type)
    if form is not None:
        return _from_form(fields, form)
    architecture = None if model_type == "anyorder" else architecture_of(model_type)
    _check_classes(fields, (OURS if architecture is None else architecture.class_name,))
    config = _from_anyorder(fields) if architecture is None else _from_native(fields, architecture)
    attention_class(config)  # which refuses a name that is not registered
    return config


def _check_classes(fields: Json, names: tuple[str, ...]) -> None:
    classes = fields.get("architectures") or [names[0]]
    if not isinstance(classes, list) or set(names).isdisjoint(map(str, classes)):
        model_type = fields.get("model_type")
        raise UserError(
            f"architectures is {classes!r}: of model_type {model_type!r}, this version reads {listed(names)}."
        )


def _from_form(fields: Json, form: Form) -> ModelConfig:
    _check_classes(fields, form.class_names)
    way = form.way(fields)
    return _from_native(form.read(fields), architecture_of(form.native)).replace(ways=(way,), default_way=way.name)


def form_to_json(config: ModelConfig, form: Form) -> Json:
    """A `config.json` in the form in which a masked diffusion model is published.

    Raises:
        UserError: the form cannot express the network.
    """
    way = next((way for way in config.ways if way.name == "diffusion"), None)
    if way is None or len(config.ways) > 1 or way.shifted != form.shifted:
        wanted = f"masked diffusion alone, {'shifted' if form.shifted else 'not shifted'}"
        raise UserError(f"form {form.name!r} is for networks that write by {wanted}: leave out the form.")
    native = _to_native(config, architecture_of(form.native))
    names = {"model_type": form.model_type, "architectures": [form.class_names[0]]}
    fields = form.write(native, way) | names
    plain = config.replace(rotary=dataclasses.replace(config.rotary, float32_angles=False))
    if attention_class(config) is not SelfAttention or _from_form(fields, form) != plain:
        remedy = f"it is no {form.native} but for who sees whom, or its end tokens differ"
        raise UserError(f"form {form.name!r} cannot express this network ({remedy}): leave out the form.")
    return fields


def config_to_json(config: ModelConfig) -> Json:
    """A `config.json`: of the first architecture that can express the network, ours otherwise.

    Raises:
        UserError: the rotary embedding or the attention is of a kind that is not registered, or cannot be written.
    """
    for architecture in ARCHITECTURES:
        fields = _to_native(config, architecture)
        if _expresses(fields, architecture, config):
            return fields
    return our_config_to_json(config)


def _from_native(fields: Json, architecture: Architecture) -> ModelConfig:
    for name, allowed in FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise UserError(f"{name} is {fields[name]!r}: this version reads networks with {allowed[0]!r} only.")
    defaults = {**architecture.defaults, **architecture.layers.defaults}
    known: Json = {name: fields.get(name) for name in REQUIRED}
    for name, default in defaults.items():
        value = fields.get(name, default)
        known[name] = NULLS.get(name, default) if value is None else value
    eos = known.pop("eos_token_id")
    known["eos_token_ids"] = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    _require(known)
    _check_types(known, typing.get_type_hints(ModelConfig) | FIELD_TYPES)
    known |= architecture.always
    known["layers"] = architecture.layers.read(known)
    known["rotary"] = rotary_from_json(fields | {"max_position_embeddings": known["max_position_embeddings"]})
    if architecture.biased_output:
        known["attention_output_bias"] = known["attention_bias"]
    return ModelConfig(**{name: value for name, value in known.items() if name not in architecture.layers.defaults})


def _to_native(config: ModelConfig, architecture: Architecture) -> Json:
    """The fields of an architecture; what it cannot express is lost."""
    rotary = rotary_to_json(config.rotary)
    if rotary["rope_type"] in TRAINED_LENGTH_ELSEWHERE:
        rotary.pop("original_max_position_embeddings", None)
    # Older readers know `rope_theta` and `rope_scaling` only; transformers 5 reads both and finds the same.
    scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
    ours = {name: getattr(config, name) for name in (*REQUIRED, *architecture.defaults) if name != "eos_token_id"}
    hints = typing.get_type_hints(ModelConfig)
    return {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        # transformers refuses whole numbers where it expects others.
        **{
            name: float(value) if hints[name] is float else value
            for name, value in ours.items()
            if name not in architecture.unwritten
        },
        **architecture.layers.write(config.layers),
        "hidden_act": "silu",
        "rope_parameters": rotary,
        "rope_theta": rotary["rope_theta"],
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "eos_token_id": ends_to_json(config.eos_token_ids),
    }


def ends_to_json(eos: tuple[int, ...]) -> int | list[int] | None:
    """The end tokens as transformers has them: one, several, or none."""
    return None if not eos else eos[0] if len(eos) == 1 else list(eos)


def _expresses(fields: Json, architecture: Architecture, config: ModelConfig) -> bool:
    """Whether `fields` say all that `config` says, and transformers takes them."""
    # In which precision angles are computed is no part of the network, and the heads alone tell their layout.
    rotary = dataclasses.replace(config.rotary, float32_angles=False)
    attention = None if config.attention in HEAD_LAYOUTS else config.attention
    padded = config.pad_token_id is None or config.pad_token_id < config.vocab_size
    if not (padded and architecture.takes(config) and attention_class(config) is SelfAttention):
        return False
    if NATIVE_ROTARY.get(fields["rope_parameters"]["rope_type"]) is not type(rotary):
        return False
    try:
        return _from_native(fields, architecture) == config.replace(rotary=rotary, attention=attention)
    except UserError:
        return False


def _from_anyorder(fields: Json) -> ModelConfig:
    ours = {field.name for field in dataclasses.fields(ModelConfig)}
    beside = {"model_type", "architectures", "eos_token_id", *OF_TRANSFORMERS}
    for name in fields:
        if name not in ours | beside:
            raise UserError(f"field {name!r} is unknown: correct its spelling, or delete it.")
    known = {name: value for name, value in fields.items() if name in ours}
    known["rotary"] = _our_rotary(fields.get("rotary"))
    for name in ("layers", "eos_token_ids"):
        known[name] = known.get(name) or []
        if not isinstance(known[name], list):
            raise UserError(f"field {name!r} is {known[name]!r}: give a list.")
    known["layers"] = tuple(_record(LayerKind, "layers", entry) for entry in known["layers"])
    known["eos_token_ids"] = _our_ends(fields.get("eos_token_id"), tuple(known["eos_token_ids"]))
    if "ways" in known:
        ways = known["ways"] if isinstance(known["ways"], list | tuple) else [known["ways"]]
        known["ways"] = tuple(_record(Way, "ways", entry) for entry in ways)
    _require(known)
    _check_types(known, typing.get_type_hints(ModelConfig))
    return ModelConfig(**known)


def _our_ends(eos: Any, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The end tokens, of which transformers' `eos_token_id` must say the same where both are given."""
    if eos is None:
        return ours
    theirs = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if ours and set(ours) != set(theirs):
        raise UserError(f"eos_token_id is {eos!r}, but eos_token_ids is {list(ours)}: keep the one that is right.")
    return ours or theirs


def _record(kind: type[Record], name: str, fields: Any) -> Record:
    """An entry of the list in field `name`: an object of JSON as a frozen record."""
    if isinstance(fields, kind):
        return fields
    kinds = typing.get_type_hints(kind)
    if not isinstance(fields, dict) or not set(fields) <= set(kinds):
        raise UserError(f"field {name!r} has the entry {fields!r}: give objects with {listed(kinds)}.")
    _check_types(fields, kinds)
    lacking = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in fields
    ]
    if lacking:
        raise UserError(f"field {name!r} has the entry {fields!r}, which lacks {lacking[0]!r}: add it.")
    return kind(**fields)


def our_config_to_json(config: ModelConfig) -> Json:
    """A `config.json` with every field of `ModelConfig`, whether or not an architecture can express the network."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}
    return {
        "model_type": "anyorder",
        "architectures": [OURS],
        **fields,
        "rotary": _our_rotary_to_json(config.rotary),
        "layers": [dataclasses.asdict(layer) for layer in config.layers],
        "eos_token_ids": list(config.eos_token_ids),
        "eos_token_id": ends_to_json(config.eos_token_ids),  # which transformers and others read
        "ways": [dataclasses.asdict(way) for way in config.ways],
    }


# ------------------------------------------------------------------------------------------------ types of fields


def _require(fields: Json) -> None:
    for name in REQUIRED:
        if fields.get(name) is None:
            raise UserError(f"field {name!r} is missing: add it.")


def _check_types(fields: Json, kinds: Mapping[str, Any], what: str = "field") -> None:
    for name, value in fields.items():
        if not _has_type(value, kinds[name]):
            raise UserError(f"{what} {name!r} is {value!r}: give {_type_name(kinds[name])}.")


def _has_type(value: Any, kind: Any) -> bool:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, option) for option in options)
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_has_type(item, options[0]) for item in value)
    if origin is typing.Literal:
        return value in options
    if isinstance(value, bool):  # which Python counts among the integers
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_type_name, options))
    if origin is typing.Literal:
        return f"one of {listed(options)}"
    if origin in (list, tuple):
        return _PLURALS.get(options[0], "a list")
    return _TYPE_NAMES.get(kind, getattr(kind, "__name__", str(kind)))


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a name", types.NoneType: "null",
}  # fmt: skip
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "a list of names"}


# ------------------------------------------------------------------------------------------------ rotary

NATIVE_ROTARY: dict[str, type[Rotary]] = {
    "default": Rotary, "linear": LinearRotary, "dynamic": DynamicRotary, "llama3": Llama3Rotary, "yarn": YarnRotary,
}  # fmt: skip
"""The types that transformers knows, under its names."""

TRAINED_LENGTH_ELSEWHERE = ("dynamic",)
"""Types for which transformers takes `max_position_embeddings` as the trained length, whatever they say themselves."""

FIRST_WITH_THETA = (4, 33)
"""The version of transformers that added `rope_theta`; before, the base of Llama was 10000 and no field said so."""


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
    if theta is None and _version(fields.get("transformers_version")) < FIRST_WITH_THETA:
        theta = 10_000.0
    if theta is None:
        raise UserError("rope_theta is missing, in rope_parameters too: add the base that was used in training.")
    # Before transformers 4.43 the type was called `type`.
    rope_type = _agreed("rope_type", [form.get("rope_type", form.get("type")) for form in forms]) or "default"
    rope_type = "rotary" if rope_type == "default" else rope_type
    if rope_type not in ROTARY_EMBEDDINGS:
        known = f"choose one of {listed(ROTARY_EMBEDDINGS)}, or register it in ROTARY_EMBEDDINGS"
        raise UserError(f"rope_type is {rope_type!r}: {known}.")
    if any(form.get("partial_rotary_factor", 1) != 1 for form in forms):
        raise UserError("partial_rotary_factor is not 1: this version reads networks that rotate whole heads only.")
    kind = ROTARY_EMBEDDINGS[rope_type]
    hints = typing.get_type_hints(kind)
    given: Json = {}
    for field in dataclasses.fields(kind):
        value = _agreed(field.name, [form.get(field.name) for form in forms])
        if field.name == "theta":
            value = theta
        if field.name == "original_max_position_embeddings":
            value = _trained_length(rope_type, value, fields)
        if value is None and field.default is dataclasses.MISSING:
            raise UserError(f"rope field {field.name!r} is missing, which rope_type {rope_type!r} needs: add it.")
        if value is not None:
            as_tuple = isinstance(value, list) and typing.get_origin(hints[field.name]) is tuple
            given[field.name] = tuple(value) if as_tuple else value
    _check_types(
        {f"rope_{name}" if name == "theta" else name: value for name, value in given.items()},
        hints | {"rope_theta": float},
        "rope field",
    )
    return kind(**given)


def _trained_length(rope_type: str, stated: Any, fields: Json) -> Any:
    """As transformers finds it: beside `rope_parameters`, in them, or the length of the network."""
    length = fields.get("max_position_embeddings")
    if rope_type in TRAINED_LENGTH_ELSEWHERE and length is not None:
        return length
    name = "original_max_position_embeddings"
    stated = _agreed(name, [stated, fields.get(name)])
    return length if stated is None else stated


def _version(text: Any) -> tuple[int, ...]:
    """Such as (4, 31) for "4.31.0.dev0"; what cannot be read counts as new."""
    found = re.match(r"(\d+)\.(\d+)", str(text))
    return (int(found[1]), int(found[2])) if found else FIRST_WITH_THETA


def rotary_to_json(rotary: Rotary) -> Json:
    """`rope_parameters` of a rotary embedding, without the precision of its angles and what is as by default.

    Raises:
        UserError: it is of a kind that is not registered.
    """
    fields = _rotary_fields(rotary)
    rope_type = registered_name(rotary)
    form: Json = {"rope_type": "default" if rope_type == "rotary" else rope_type, "rope_theta": fields["theta"]}
    for field in dataclasses.fields(rotary):
        if field.name not in ("theta", "float32_angles") and fields.get(field.name, field.default) != field.default:
            form[field.name] = fields[field.name]
    return form


def _rotary_fields(rotary: Rotary) -> Json:
    """What a rotary embedding's fields are, except for those that are None."""
    hints = typing.get_type_hints(type(rotary))
    fields = {field.name: getattr(rotary, field.name) for field in dataclasses.fields(rotary)}
    return {
        name: float(value) if hints[name] in (float, float | None) else value
        for name, value in fields.items()
        if value is not None
    }


def _our_rotary(form: Any) -> Rotary:
    rotary = rotary_from_json({"rope_parameters": form})
    known = {"rope_type", "rope_theta"} | {field.name for field in dataclasses.fields(rotary)} - {"theta"}
    for name in form:
        if name not in known:
            raise UserError(f"rope field {name!r} is unknown: correct its spelling, or delete it.")
    return rotary


def _our_rotary_to_json(rotary: Rotary) -> Json:
    fields = rotary_to_json(rotary) | _rotary_fields(rotary)  # all, since defaults may change
    del fields["theta"]
    try:
        comes_back = _our_rotary(json.loads(json.dumps(fields))) == rotary
    except (TypeError, UserError):
        comes_back = False
    if not comes_back:
        remedy = "give its fields types of JSON (numbers, names, true or false, tuples of them)"
        raise UserError(f"rotary embedding {rotary!r} cannot be written: {remedy}.")
    return fields


def _agreed(name: str, values: list[Any]) -> Any:
    """The one value among those given, None if none is."""
    given = [value for value in values if value is not None]
    if any(value != given[0] for value in given):
        raise UserError(f"{name} is given as {' and as '.join(map(repr, given))}: keep the one that is right.")
    return given[0] if given else None
