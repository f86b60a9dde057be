"""Rotary embeddings as `config.json` has them: transformers' `rope_parameters`, or older fields."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from anyorder.checkpoints.json_types import Json, check_types
from anyorder.checkpoints.weights import listed
from anyorder.errors import UserError
from anyorder.model.rope import (
    ROTARY_EMBEDDINGS,
    DynamicRotary,
    LinearRotary,
    Llama3Rotary,
    Rotary,
    YarnRotary,
    registered_name,
)
from anyorder.utils.annotations import shown

NATIVE_ROTARY: dict[str, type[Rotary]] = {
    "default": Rotary, "linear": LinearRotary, "dynamic": DynamicRotary, "llama3": Llama3Rotary, "yarn": YarnRotary,
}  # fmt: skip
"""The types that transformers knows, under its names."""

TRAINED_LENGTH_ELSEWHERE = ("dynamic",)
"""Types for which transformers takes `max_position_embeddings` as the trained length, whatever they say themselves."""

FIRST_WITH_THETA = (4, 33)
"""The version of transformers that added `rope_theta`; before, the base of Llama was 10000 and no field said so."""


def rotary_from_json(fields: Json) -> Rotary:
    """The rotary embedding of whole heads, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    Raises:
        UserError: no base is found, two forms disagree, the type is unknown, or it turns a part of each head.
    """
    rotary = any_rotary_from_json(fields)
    if rotary.partial_rotary_factor != 1:
        raise UserError("partial_rotary_factor is not 1: this version reads networks that rotate whole heads only.")
    return rotary


def any_rotary_from_json(fields: Json) -> Rotary:
    """The same, also where it turns a part of each head.

    Raises:
        UserError: no base is found, two forms disagree, or the type is unknown.
    """
    forms = [form for name in ("rope_parameters", "rope_scaling") if (form := fields.get(name)) is not None]
    for form in forms:
        if not isinstance(form, Mapping):
            raise UserError(f"rope_parameters or rope_scaling is {shown(form)}: give an object with rope_type.")
    theta = _agreed("rope_theta", [form.get("rope_theta") for form in (*forms, fields)])
    if theta is None and _version(fields.get("transformers_version")) < FIRST_WITH_THETA:
        theta = 10_000.0
    if theta is None:
        raise UserError("rope_theta is missing, in rope_parameters too: add the base that was used in training.")
    # Before transformers 4.43 the type was called `type`.
    rope_type = _agreed("rope_type", [form.get("rope_type", form.get("type")) for form in forms]) or "default"
    rope_type = "rotary" if rope_type == "default" else rope_type
    if not isinstance(rope_type, str) or rope_type not in ROTARY_EMBEDDINGS:
        known = f"choose one of {listed(ROTARY_EMBEDDINGS)}, or register it in ROTARY_EMBEDDINGS"
        raise UserError(f"rope_type is {shown(rope_type)}: {known}.")
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
    check_types(
        {f"rope_{name}" if name == "theta" else name: value for name, value in given.items()},
        hints | {"rope_theta": float},
        "rope field",
    )
    return kind(**given)


def _trained_length(rope_type: str, stated: Any, fields: Json) -> Any:
    """Return the length as transformers finds it: beside `rope_parameters`, in them, or that of the network."""
    length = fields.get("max_position_embeddings")
    if rope_type in TRAINED_LENGTH_ELSEWHERE and length is not None:
        return length
    name = "original_max_position_embeddings"
    stated = _agreed(name, [stated, fields.get(name)])
    return length if stated is None else stated


def _version(text: Any) -> tuple[int, ...]:
    """Parse a version, such as "4.31.0.dev0" to (4, 31); what cannot be read counts as new."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", str(text))
    return (int(found[1]), int(found[2])) if found else FIRST_WITH_THETA


def rotary_to_json(rotary: Rotary) -> Json:
    """Return `rope_parameters` of a rotary embedding, without the precision of its angles and what is as by default.

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
    """Return what a rotary embedding's fields are, except for those that are None."""
    hints = typing.get_type_hints(type(rotary))
    fields = {field.name: getattr(rotary, field.name) for field in dataclasses.fields(rotary)}
    return {
        name: float(value) if hints[name] in (float, float | None) else value
        for name, value in fields.items()
        if value is not None
    }


def our_rotary(form: Any) -> Rotary:
    """Return a rotary embedding in our own words, all fields of which are known.

    Raises:
        UserError: it is none.
    """
    rotary = any_rotary_from_json({"rope_parameters": form})
    known = {"rope_type", "rope_theta"} | {field.name for field in dataclasses.fields(rotary)} - {"theta"}
    for name in form:
        if name not in known:
            raise UserError(f"rope field {shown(name)} is unknown: correct its spelling, or delete it.")
    return rotary


def our_rotary_to_json(rotary: Rotary) -> Json:
    """Return the same with all fields, since defaults may change.

    Raises:
        UserError: it would not come back as it is.
    """
    fields = rotary_to_json(rotary) | _rotary_fields(rotary)
    del fields["theta"]
    try:
        comes_back = our_rotary(json.loads(json.dumps(fields))) == rotary
    except (TypeError, UserError):
        comes_back = False
    if not comes_back:
        remedy = "give its fields types of JSON (numbers, names, true or false, tuples of them)"
        raise UserError(f"rotary embedding {rotary!r} cannot be written: {remedy}.")
    return fields


def _agreed(name: str, values: list[Any]) -> Any:
    """Return the one value among those given, None if none is."""
    given = [value for value in values if value is not None]
    if any(value != given[0] for value in given):
        raise UserError(f"{name} is given as {' and as '.join(map(shown, given))}: keep the one that is right.")
    return given[0] if given else None
