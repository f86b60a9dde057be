"""The mask token of a network whose configuration leaves it to the tokenizer beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyorder.checkpoints.json_files import read_json

NAMING = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that name the mask token by its text."""


def tokenizers_mask_token(folder: Path) -> int | None:
    """The id of the token that the tokenizer's files name as `mask_token`; None where they name none.

    Raises:
        UserError: a file is no JSON.
    """
    files = {name: read_json(folder / name) for name in NAMING if (folder / name).is_file()}
    texts = (_text(fields.get("mask_token")) for fields in files.values())
    text = next((text for text in texts if text is not None), None)
    if text is None:
        return None
    decoder = files.get(NAMING[0], {}).get("added_tokens_decoder")
    for token_id, token in decoder.items() if isinstance(decoder, dict) else ():
        if _text(token) == text and token_id.isdecimal():
            return int(token_id)
    for name in ("added_tokens.json", "vocab.json"):
        if (folder / name).is_file() and isinstance(found := read_json(folder / name).get(text), int):
            return found
    return _in_backend(folder / "tokenizer.json", text)


def _in_backend(file: Path, text: str) -> int | None:
    added = read_json(file).get("added_tokens") if file.is_file() else None
    for token in added if isinstance(added, list) else ():
        if _text(token) == text and isinstance(token, dict) and isinstance(token.get("id"), int):
            return int(token["id"])
    return None


def _text(token: Any) -> str | None:
    """Of a token that is written as it is, or as an object with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
