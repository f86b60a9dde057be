"""The mask token of a network whose configuration leaves it to the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.json_types import Json
from anyorder.checkpoints.masked_diffusion import form_of
from anyorder.checkpoints.places import is_file

GENERATION_CONFIG = "generation_config.json"

NAMING = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that name the mask token by its text."""


def with_tokenizers_mask(fields: Json, folder: Path) -> Json:
    """Return the fields of a config.json, with the mask token of generation_config.json or the tokenizer if needed.

    Raises:
        UserError: a file is no JSON.
    """
    form = form_of(fields)
    if form is None or form.names_mask(fields):
        return fields
    if is_file(folder / GENERATION_CONFIG):
        mask = read_json(folder / GENERATION_CONFIG).get("mask_token_id")
        if mask is not None:
            return fields | {"mask_token_id": mask}
    if form.mask_token_id is not None:
        return fields
    return fields | {"mask_token_id": tokenizers_mask_token(folder)}


def tokenizers_mask_token(folder: Path) -> int | None:
    """Return the id of the token that the tokenizer's files name as `mask_token`; None where they name none.

    Raises:
        UserError: a file is no JSON.
    """
    files = {name: read_json(folder / name) for name in NAMING if is_file(folder / name)}
    texts = (_text(fields.get("mask_token")) for fields in files.values())
    text = next((text for text in texts if text is not None), None)
    if text is None:
        return None
    decoder = files.get(NAMING[0], {}).get("added_tokens_decoder")
    for token_id, token in decoder.items() if isinstance(decoder, dict) else ():
        if _text(token) == text and token_id.isdecimal() and len(token_id) < 10:
            return int(token_id)
    for name in ("added_tokens.json", "vocab.json"):
        if is_file(folder / name) and isinstance(found := read_json(folder / name).get(text), int):
            return found
    return _in_backend(folder / "tokenizer.json", text)


def _in_backend(file: Path, text: str) -> int | None:
    added = read_json(file).get("added_tokens") if is_file(file) else None
    for token in added if isinstance(added, list) else ():
        if _text(token) == text and isinstance(token, dict) and isinstance(token.get("id"), int):
            return int(token["id"])
    return None


def _text(token: Any) -> str | None:
    """Return the text of a token, which is written as it is, or as an object with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
