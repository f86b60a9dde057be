"""Values of JSON compared with the annotations of the records that they are for, in JSON's words."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from anyorder.checkpoints.weights import listed
from anyorder.errors import UserError
from anyorder.utils.annotations import shown

Json = dict[str, Any]
"""An object of JSON."""


def check_types(fields: Mapping[str, Any], kinds: Mapping[str, Any], what: str = "field") -> None:
    """Compare fields with the types of the same names.

    Raises:
        UserError: a field has a value of another type.
    """
    for name, value in fields.items():
        if not _has_type(value, kinds[name]):
            raise UserError(f"{what} {name!r} is {shown(value)}: give {_type_name(kinds[name])}.")


def _has_type(value: Any, kind: Any) -> bool:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, option) for option in options)
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_has_type(item, options[0]) for item in value)
    if origin is typing.Literal:
        return isinstance(value, str) and value in options
    if isinstance(value, bool):  # which Python counts among the integers
        return kind is bool
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
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
