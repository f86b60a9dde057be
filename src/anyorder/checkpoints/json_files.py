"""JSON objects in files."""

from __future__ import annotations

import json
from pathlib import Path

from anyorder.checkpoints.architectures import Json
from anyorder.errors import UserError


def read_json(file: Path) -> Json:
    """The JSON object in a file.

    Raises:
        UserError: there is none in it.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers of thousands of digits, nested deep
        raise UserError(f"{str(file)!r} is not JSON ({error}): fetch it again.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{str(file)!r} holds {type(fields).__name__}, not a JSON object: fetch it again.")
    return fields


def write_json(file: Path, fields: Json) -> None:
    """Writes a JSON object for people to read."""
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
