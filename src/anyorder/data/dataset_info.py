"""LLaMA-Factory's `dataset_info.json`, which says how the fields of the files beside it are called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "dataset_info.json"

COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "messages": "conversations",
    "history": "history", "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected",
    "kto_tag": "kto_tag", "images": "images", "videos": "videos", "audios": "audios",
}  # fmt: skip
"""Its names of columns, and the fields that they are."""

TAGS = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "function_call",
    "system_tag": "system",
}  # fmt: skip
"""Its names of speakers, and the roles that they are."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """How the fields of one file are called.

    Attributes:
        columns: our name of each field that has another.
        keys: likewise within messages.
        speakers: our name of each speaker.
        is_text: whether the prompt is a text to be trained on, since there is no answer.
    """

    columns: Mapping[str, str]
    keys: Mapping[str, str]
    speakers: Mapping[str, str]
    is_text: bool

    def apply(self, values: Any) -> Any:
        """Return a record with our names."""
        if not isinstance(values, dict):
            return values
        renamed = {self.columns.get(name, name): value for name, value in values.items()}
        if self.is_text and "output" not in renamed and "instruction" in renamed:
            renamed["text"] = renamed.pop("instruction")
        if self.keys or self.speakers:
            for name in ("conversations", "chosen", "rejected"):
                value = renamed.get(name)
                renamed[name] = list(map(self._message, value)) if isinstance(value, list) else self._message(value)
        return renamed

    def _message(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        message = {self.keys.get(name, name): item for name, item in value.items()}
        for name in ("role", "from"):
            if isinstance(message.get(name), str):
                message[name] = self.speakers.get(message[name], message[name])
        return message


def names_of(file: Path) -> Names | None:
    """Return what `dataset_info.json` beside a file says about it; None where there is none, or it says nothing."""
    try:
        sets = json.loads((file.parent / NAME).read_text(encoding="utf-8"))
        entry = next(entry for entry in sets.values() if entry.get("file_name") == file.name)
        columns, tags = dict(entry.get("columns") or {}), dict(entry.get("tags") or {})
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, StopIteration):
        return None  # the library datasets has a file of this name as well
    if not columns and not tags:
        return None
    return Names(
        columns={column: COLUMNS[name] for name, column in columns.items() if name in COLUMNS},
        keys={tags[name]: ours for name, ours in (("role_tag", "role"), ("content_tag", "content")) if name in tags},
        speakers={tags[name]: ours for name, ours in TAGS.items() if name in tags},
        is_text=set(columns) == {"prompt"},
    )
