"""JSON objects in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anyorder.checkpoints.json_types import Json
from anyorder.errors import UserError

DEEPEST = 50
"""Objects and lists within each other; no file of a checkpoint has ten, and what handles them is recursive."""


def read_json(file: Path) -> Json:
    """Return the JSON object in a file; a byte order mark before it is passed over.

    Raises:
        UserError: there is none in it, it gives a field twice, or it is nested too deep.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_unambiguous)
    except RecursionError:
        raise UserError(f"{str(file)!r} nests thousands of lists or objects: fetch it again.") from None
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read ({error.strerror}): check the file.") from error
    except _TwiceError as error:
        raise UserError(f"{str(file)!r} gives the field {error} twice: keep the one that is right.") from None
    except ValueError as error:  # no UTF-8, no JSON, or an integer of more than 4,300 digits
        raise UserError(f"{str(file)!r} is not JSON ({error}): fetch it again.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{str(file)!r} holds {type(fields).__name__}, not a JSON object: fetch it again.")
    if _is_deep(fields):
        raise UserError(f"{str(file)!r} nests more than {DEEPEST} lists or objects: fetch it again.")
    return fields


class _TwiceError(ValueError):
    """A field that an object gives twice, with different values."""


def _unambiguous(pairs: list[tuple[str, Any]]) -> Json:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, value in pairs:
            if value != fields[name]:
                raise _TwiceError(repr(name[:100]))
    return fields


def _is_deep(fields: Json) -> bool:
    level: list[Any] = [fields]
    for _ in range(DEEPEST):
        inner = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        level = [item for item in inner if isinstance(item, dict | list)]
    return bool(level)


def write_json(file: Path, fields: Json) -> None:
    """Write a JSON object for people to read."""
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
