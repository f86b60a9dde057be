"""Objects as they print: short, with what matters first."""

from __future__ import annotations

import dataclasses
from typing import Any

SHOWN = 60
"""Characters of a text that are printed."""


def changed_fields(record: Any) -> str:
    """Print a dataclass with those of its fields that are not as usual, such as "Sampling(temperature=0.8)"."""
    shown = [
        f"{field.name}={value!r}"
        for field in dataclasses.fields(record)
        if field.repr and not _is_usual(field, value := getattr(record, field.name))
    ]
    return f"{type(record).__name__}({', '.join(shown)})"


def _is_usual(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return field.default is not dataclasses.MISSING and bool(value == field.default)


def shortened(text: str, most: int = SHOWN) -> str:
    """Print a text on one line, its beginning if it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."


def counted(number: int, noun: str) -> str:
    """Print a number with its noun, such as "1 text" and "3 texts"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
