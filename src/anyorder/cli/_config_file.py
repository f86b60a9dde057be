"""Configuration files: what they may hold is checked before anything is made of it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from anyorder.errors import UserError

MOST_BYTES = 1_000_000
MOST_DIGITS = 100
RESOLVE = yaml.SafeLoader("").resolve

BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_config_file(name: str) -> str:
    """Read a configuration file, a flat mapping from settings to values and lists of values, and return its text.

    Args:
        name: the file, YAML or JSON in UTF-8, or in what its byte order mark says.

    Raises:
        UserError: it cannot be read, or holds something else; an alias can stand for a value or a list alone, so
            no file grows when it is read.
    """
    text = _decoded(name)
    if text.lstrip().startswith("{"):
        text = _from_json(name, text)
    settings: set[str] = set()
    try:
        for key, line in _settings(name, text):
            if key in settings:
                raise _refused(name, f"has {key!r} twice, again in line {line}: leave out one of them.")
            settings.add(key)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise _refused(
            name, f"is no YAML or JSON{where} ({reason}): write a setting a line, such as seed: 0."
        ) from None
    return text if settings else ""


def _refused(name: str, what: str) -> UserError:
    return UserError(f"config {name!r} {what}")


def _decoded(name: str) -> str:
    try:
        file = Path(name)
        if not file.is_file():
            raise UserError(f"option --config is {name!r}: no such file, give the path of a YAML or JSON file.")
        if file.stat().st_size > MOST_BYTES:
            raise _refused(name, f"has more than {MOST_BYTES:,} bytes: give a file of settings, not of data.")
        data = file.read_bytes()
    except (OSError, ValueError) as error:  # names that are too long, or that have a NUL
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UserError):
            raise
        raise _refused(name, f"cannot be read ({reason}): give the path of a YAML or JSON file.") from None
    mark = next((mark for mark in BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    try:
        return data[len(mark) :].decode(BYTE_ORDER_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        raise _refused(name, f"is not UTF-8 at byte {len(mark) + error.start}: save it as UTF-8.") from None


def _from_json(name: str, text: str) -> str:
    """Put JSON on one line, as YAML takes it; what is no JSON stays, since YAML has braces, too."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise _refused(name, f"has {key!r} twice: leave out one of them.")
        return dict(pairs)

    try:
        return json.dumps(json.loads(text, object_pairs_hook=once), ensure_ascii=False)
    except UserError:
        raise
    except (ValueError, RecursionError):
        return text


def _settings(name: str, text: str) -> Iterator[tuple[str, int]]:
    """Yield each setting and its line.

    Read as events, not as objects: so neither depth nor aliases take time or memory.
    """
    depth, key, document = 0, None, False
    values: set[str] = set()  # anchors of values
    lists: set[str] = set()  # anchors of lists of values
    open_list: str | None = None
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            if document:
                raise _refused(name, f"holds a second document from line {line} on: make it a file of its own.")
            document = True
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(name, event, line)
            if event.anchor:
                values.add(event.anchor)
            if depth == 0 and event.value:
                raise _refused(name, f"holds {event.value[:40]!r} alone: write settings with values, such as seed: 0.")
            if depth == 1 and key is None:
                key = event.value
                if event.implicit[0] and RESOLVE(yaml.ScalarNode, key, (True, False)) != "tag:yaml.org,2002:str":
                    raise _refused(name, f"has {key!r} for a name in line {line}: see the names with --help.")
                yield key, line
            elif depth == 1:
                key = None
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in (values | lists if depth == 1 and key is not None else values):
                raise _refused(name, f"has *{event.anchor} in line {line}, no value or list of values: write it out.")
            if depth == 1:
                key = None
        elif isinstance(event, yaml.MappingStartEvent):
            if depth:
                raise _refused(name, f"has settings below {key!r} in line {line}: write each at the left margin.")
            depth += 1
        elif isinstance(event, yaml.SequenceStartEvent):
            if depth != 1 or key is None:
                where = "holds a list" if depth == 0 else f"has a list within {key!r} in line {line}"
                raise _refused(name, f"{where}: write settings with values, such as seed: 0.")
            depth, open_list = depth + 1, event.anchor
        elif isinstance(event, yaml.SequenceEndEvent):
            depth, key = depth - 1, None
            if open_list:
                lists.add(open_list)


def _check_scalar(name: str, event: yaml.ScalarEvent, line: int) -> None:
    value = event.value
    if event.tag:
        raise _refused(name, f"has the tag {event.tag} in line {line}: write the value alone.")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _refused(name, f"has a character in line {line} that no text has: take it out.")
    if event.implicit[0] and len(value) > MOST_DIGITS and value.lstrip("+-").replace("_", "").isdigit():
        raise _refused(name, f"has a number of {len(value)} digits in line {line}: give a smaller one.")
