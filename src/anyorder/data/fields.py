"""The fields of a JSON object, and what is taken from them.

Fields remember which of them were read, so that text which was not read can be reported instead of being dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anyorder.utils.annotations import shown

METADATA = re.compile(
    r"|unnamed: \d+|__index_level_\d+__|_.*|(num|n|is|has)_.*|"
    r"(.+[_ ])?(id|ids|idx|index|uuid|guid|key|hash|md5|sha\d*|urls?|uri|link|sources?|dataset|subset|split|config|"
    r"categor(y|ies)|topics?|tags?|type|kind|domain|subject|lang|languages?|licen[cs]e|date|time|timestamp|year|"
    r"created(_at)?|updated(_at)?|version|models?|model_name|generator|authors?|scores?|ratings?|quality|difficulty|"
    r"level|length|counts?|tokens|meta|metadata|file|file_?name|path|redacted|toxic|country|state)"
)
"""Names (in lower case) of fields that say something about a record and are no part of it."""

MEDIA = ("image", "images", "audio", "audios", "video", "videos")

_DEEPEST = 64
"""Levels of a JSON value that is written out again: far more than calls and descriptions of tools have."""


class BadRecordError(Exception):
    """What is wrong with a record, and the remedy; it becomes a sentence where the place is known."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class Fields:
    """Fields by name, without regard to upper and lower case.

    Args:
        values: the JSON object.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        lower = {name.strip().lower(): value for name, value in values.items()}
        self._values = lower if len(lower) == len(values) else dict(values)
        self._read: set[str] = set()
        self._has = {name for name, value in self._values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def has(self, name: str) -> bool:
        """Return whether the field is there and not null; this does not read it."""
        return name in self._has

    def get(self, name: str) -> Any:
        """Return the value, None where there is none."""
        self._read.add(name)
        return self._values.get(name)

    def first(self, names: Iterable[str]) -> str | None:
        """Return the first of these names that has a value."""
        return next((name for name in names if name in self._has), None)

    def those(self, names: Sequence[str]) -> list[str]:
        """Return those of these names that have a value."""
        return [] if self._has.isdisjoint(names) else [name for name in names if name in self._has]

    def optional_text(self, name: str) -> str:
        """Return a text that may be missing, null or empty.

        Raises:
            BadRecordError: it is something else.
        """
        value = self.get(name)
        return "" if value is None else checked_text(value, f"`{name}`", may_be_empty=True)

    def unread(self) -> list[str]:
        """Return fields with text that were not read and are no metadata."""
        return [
            name
            for name, value in self._values.items()
            if name not in self._read and not METADATA.fullmatch(name) and carries_text(value)
        ]

    def refuse_media(self) -> None:
        """Refuse images and sounds, without which a text about them makes no sense.

        Raises:
            BadRecordError: there are some.
        """
        name = next((name for name in MEDIA if self._values.get(name)), None)
        if name is not None:
            raise BadRecordError(f"has `{name}`, and only text is trained on", "use data of text alone")


def carries_text(value: object) -> bool:
    """Return whether there is text in a JSON value."""
    remaining = [value]
    while remaining:  # not by recursion: metadata may be nested as deep as JSON can be
        item = remaining.pop()
        if isinstance(item, str) and item.strip():
            return True
        remaining += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return False


def checked_text(text: object, name: str, *, may_be_empty: bool = False) -> str:
    """Return a text that a tokenizer can read.

    Raises:
        BadRecordError: it is none.
    """
    if not isinstance(text, str):
        raise BadRecordError(f"{name} is {shown(text)}", "give text, in quotes")
    if not text and not may_be_empty:
        raise BadRecordError(f"{name} is empty", "write something there")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRecordError(f"{name} has half a character (a surrogate alone)", "write the text anew as UTF-8")
    return text


def parsed(value: Any, name: str) -> Any:
    """Return a JSON value that may be written as JSON within a string, as tables have it.

    Raises:
        BadRecordError: the string is not JSON.
    """
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRecordError(f"{name} is not JSON ({error})", "mend it") from None
    return value


def writable(value: Any, name: str) -> Any:
    """Return the same as `parsed`, which can be written out as JSON again.

    Raises:
        BadRecordError: it cannot, or the string is not JSON.
    """
    value = parsed(value, name)
    if _deeper(value, _DEEPEST):
        raise BadRecordError(f"{name} is nested more than {_DEEPEST} deep", "mend it")
    try:
        checked_text(json.dumps(value, ensure_ascii=False, allow_nan=False), name)
    except (TypeError, ValueError) as error:  # a date, a number that is none
        raise BadRecordError(f"{name} cannot be written as JSON ({error})", "mend it") from None
    return value


def _deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in items)


def objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    """Return a list of JSON objects: as such, as JSON within a string, or as tables have it, an object of equal lists.

    Raises:
        BadRecordError: it is none.
    """
    value = parsed(value, name)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        columns = list(value.values())
        if len(set(map(len, columns))) == 1:
            value = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(value, list):
        value = [parsed(item, name) for item in value]
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise BadRecordError(f"{name} is {shown(value)}", "give a list of JSON objects, at least two")
    return value


def mark(value: object, name: str) -> bool | None:
    """Return a mark of what is trained on: True or 1, False or 0, None where there is none.

    Raises:
        BadRecordError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise BadRecordError(f"{name} is {shown(value)}", "give 1 for what is trained on and 0 for what is not")
