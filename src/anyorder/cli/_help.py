"""The help of a command: its options under headings, with what a person writes for each, in the terminal's width."""

from __future__ import annotations

import inspect
import shutil
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

WIDEST = 100
"""Columns of a line at most, however wide the terminal is."""

NARROWEST = 30
"""Columns of a line, however narrow the terminal is."""

COLUMN = 26
"""Where explanations begin."""

INDENT = 6
"""Where they begin, below their option, if lines have no room for `COLUMN` and as much again."""

UNBROKEN = "\N{NO-BREAK SPACE}"
"""A space at which no line is broken."""

FREE_TEXT = ("prompt", "prefix", "suffix", "separator", "instruction", "stop", "text", "phrasings", "prompts")
"""What is text of any kind, not a name."""

KINDS = {int: "N", float: "X", Path: "PATH"}
"""The placeholder of a value, by its type; the legend at the end of each help explains it."""

LEGEND = {"N": "a whole number", "X": "a number", "NAME": "a name or a path"}


class Entry(NamedTuple):
    """A word or an option.

    Attributes:
        name: of the parameter.
        is_word: it is written without a name of an option.
        hint: its type.
        default: of the parameter; `inspect.Parameter.empty` where it must be given.
        text: what it is.
    """

    name: str
    is_word: bool
    hint: Any
    default: Any
    text: str

    @property
    def value(self) -> str:
        """The placeholder of its value; empty for a flag."""
        return _value(self.name, self.hint)

    @property
    def heading(self) -> str:
        """How it is written."""
        return self.name.upper() if self.is_word else f"--{self.name} {self.value}".rstrip()

    @property
    def explanation(self) -> str:
        """What it is, what it may be where the heading has no room, and what it is unless given."""
        parts = [self.text if self.text.endswith((".", ";")) else f"{self.text}."]
        choices = _choices(self.hint)
        if choices and not self.value.startswith("{") and not all(choice in self.text for choice in choices):
            parts.append(f"One of {', '.join(choices)}.")
        if get_origin(self.hint) is list and not self.is_word and "repeated" not in self.text:
            parts.append("May be repeated.")
        if self.default is inspect.Parameter.empty and not self.is_word:
            parts.append("Must be given.")
        elif isinstance(self.default, (int, float, str, Path)) and not isinstance(self.default, bool):
            value = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
            parts += [f"(default:{UNBROKEN}{value})"] if value else []
        return " ".join(parts)


def help_text(
    program: str, about: str, entries: Sequence[Entry], groups: Mapping[str, Sequence[str]], below: Sequence[str] = ()
) -> str:
    """Return the help of a command.

    Args:
        program: as it is called, such as "anyorder generate".
        about: what it does.
        entries: its words and options.
        groups: names of options by heading; what is under none is not shown.
        below: names of commands below this one.
    """
    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns)) - 1
    words = [entry for entry in entries if entry.is_word]
    usage = " ".join(["usage:", program, *map(_usage, words), *_needed(entries), "[options]"])
    blocks = ["\n".join(textwrap.wrap(usage, width, subsequent_indent=" " * 8))]
    blocks += [textwrap.fill(paragraph, width) for paragraph in about.split("\n\n")]
    if words:
        blocks.append("\n".join(line for entry in words for line in _lines(entry, width)))
    for title, names in groups.items():
        members = [entry for name in names for entry in entries if entry.name == name and not entry.is_word]
        if members:
            blocks.append("\n".join([f"{title}:", *(line for entry in members for line in _lines(entry, width))]))
    shown = {entry.value for entry in entries}
    legend = "; ".join(f"{sign}: {meaning}" for sign, meaning in LEGEND.items() if sign in shown)
    if legend:
        blocks.append(textwrap.fill(f"{legend}.", width))
    if below:
        blocks.append(textwrap.fill(f"Below it: {', '.join(f'{program} {name}' for name in below)}.", width))
    return "\n\n".join(blocks)


def _usage(word: Entry) -> str:
    name = f"{word.name.upper()} ..." if get_origin(word.hint) is list else word.name.upper()
    return name if word.default is inspect.Parameter.empty else f"[{name}]"


def _needed(entries: Sequence[Entry]) -> list[str]:
    return [entry.heading for entry in entries if not entry.is_word and entry.default is inspect.Parameter.empty]


def _lines(entry: Entry, width: int) -> list[str]:
    heading = f"  {entry.heading}"
    column = COLUMN if width >= 2 * COLUMN else INDENT
    first = f"{heading:{column}}" if len(heading) < column - 1 else ""
    lines = textwrap.wrap(
        entry.explanation, width, initial_indent=first or " " * column, subsequent_indent=" " * column,
        break_on_hyphens=False,
    )  # fmt: skip
    lines = [line.replace(UNBROKEN, " ") for line in lines]
    return lines if first else [heading, *lines]


def _value(name: str, hint: Any) -> str:
    hint = _without_none(hint)
    if hint is bool:
        return ""
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        return _value(name, inner) if inner is str else f"{_value(name, inner).strip('{}').split('|')[0].upper()},..."
    if choices := _choices(hint):
        joined = f"{{{'|'.join(choices)}}}"
        return joined if len(joined) <= WIDEST // 2 else name.rpartition("_")[2].upper()
    return KINDS.get(hint, "TEXT" if name in FREE_TEXT else "NAME")


def _choices(hint: Any) -> list[str]:
    hint = _without_none(hint)
    return [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        inner = [kind for kind in get_args(hint) if kind is not types.NoneType]
        return inner[0] if len(inner) == 1 else str
    return hint
