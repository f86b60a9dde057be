"""From a typed function to a parser, and from any error to one sentence."""

from __future__ import annotations

import argparse
import inspect
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser

from anyorder.cli._config_file import read_config_file
from anyorder.cli._groups import FEW, GROUPS, NEEDED, OVERWRITE, REFUSED, TRAINING, TRAININGS
from anyorder.cli._help import Entry, help_text
from anyorder.cli._messages import as_options, explain
from anyorder.cli._signature import Command, arguments_of, explanations, hints_of, options_of, parameters_of
from anyorder.errors import UserError
from anyorder.utils.files import TakenError


class Call(NamedTuple):
    """A command line, parsed.

    Attributes:
        arguments: keywords for the command.
        force: whether what is there already is to be overwritten.
    """

    arguments: dict[str, Any]
    force: bool


def parse(name: str, command: Command, words: Sequence[str], below: Sequence[str] = ()) -> Call:
    """Parse a command line into keywords for `command`.

    Positional parameters of the function become words (of type `list[str]`, any number of them), keyword-only ones
    options; `bool` options are bare flags. A list option may be repeated, and of one that is no list of free text
    (`list[int]`, `list[Listed]`, a list of a `Literal`) the items may have commas between, too. `--config FILE`
    sets any of them, and the rest of the command line overrides the file, also where it comes first. A parameter that
    is a dataclass counts as its fields.

    Args:
        name: of the command, for messages. The function's own would not do: jsonargparse looks up what it
            is given in the package by that name, and `anyorder.generate` would import everything.
        command: function with type hints and a docstring that explains every parameter.
        words: the command line after the command's name.
        below: commands below this one, for its help.

    Raises:
        UserError: a word, an option or a value that the command does not take.
        SystemExit: after `--help`.
    """
    if any(word in ("-h", "--help") for word in itertools.takewhile(lambda word: word != "--", words)):
        print(_help(name, command, below))
        sys.exit(0)
    parser = _parser(name, command)
    try:
        with _config_first(words) as ordered:
            values = parser.parse_args(ordered).as_dict()
    except ArgumentError as error:
        raise UserError(explain(name, known_to(name, command), error.message)) from None
    force = values.pop("force", False)
    lists = lists_of(command)
    for key in values.keys() & lists.keys():
        values[key] = _items(key, values[key], lists[key])
    with typed_names(name, command):
        return Call(arguments_of(command, values), force)


@contextmanager
def typed_names(name: str, command: Command) -> Iterator[None]:
    """Call parameters of the command as they are typed, in the message of a mistake within the context."""
    try:
        yield
    except UserError as error:
        flags = {name for name, hint in hints_of(command).items() if hint is bool}
        message = as_options(str(error), options_of(command), flags)
        if isinstance(error, TakenError) and name in OVERWRITE:
            message = f"{message.removesuffix('.').replace(', or ', ', ')}, or overwrite it with --force."
        error.args = (message, *error.args[1:])
        raise


def one_sentence(error: Exception) -> str:
    """Return what went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names) or 'a file'} cannot be used: {error.strerror}."
    return " ".join(str(error).split())


FORCE = "Overwrite what {} names, once the new one is whole."

SETTINGS = {
    "config": "YAML or JSON file with values for any of these.",
    "print_config": "Print all values as such a file, and end.",
    "help": "Print this, and end.",
}
"""What every command takes."""


def known_to(name: str, command: Command) -> dict[str, inspect.Parameter]:
    """Return the parameters of a command, and what the command line adds to them."""
    known = parameters_of(command)
    for added in ("config", "print_config", *(["force"] if name in OVERWRITE else [])):
        known[added] = inspect.Parameter(added, inspect.Parameter.KEYWORD_ONLY, default=None)
    return known


def headings_of(name: str) -> Mapping[str, Sequence[str]]:
    """Return the headings of a command with many options; its help has only what is under one of them."""
    return TRAINING if name in TRAININGS else GROUPS


def _help(name: str, command: Command, below: Sequence[str]) -> str:
    help_of, hints = explanations(command), hints_of(command)
    entries = [
        Entry(
            parameter.name, parameter.kind is not parameter.KEYWORD_ONLY, hints[parameter.name],
            parameter.empty if parameter.name in NEEDED.get(name, ()) else _default(parameter.default),
            help_of[parameter.name],
        )
        for parameter in parameters_of(command).values()
        if parameter.name not in REFUSED.get(name, ())
    ]  # fmt: skip
    options = [entry.name for entry in entries if not entry.is_word]
    groups = {"options": [*options, "force"]} if len(options) <= FEW else headings_of(name)
    if name in OVERWRITE:
        places = [entry for entry in entries if entry.name in OVERWRITE[name]]
        called = [place.name.upper() if place.is_word else f"--{place.name}" for place in places]
        text = FORCE.format(" or ".join(called))
        entries.append(Entry("force", False, bool, False, text))
    entries += [
        Entry(option, False, Path if option == "config" else bool, None, text) for option, text in SETTINGS.items()
    ]
    groups = {**groups, "settings": list(SETTINGS)}
    about = parse_docstring(command.__doc__ or "").description or ""
    return help_text(f"anyorder {name}", about, entries, groups, below)


def _default(default: Any) -> Any:
    """Return a default to print; None for one that is made anew for each record."""
    return default if isinstance(default, (int, float, str, Path, type)) else None


def _parser(name: str, command: Command) -> ArgumentParser:
    parser = ArgumentParser(prog=f"anyorder {name}", exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_argument("--config", action="config")
    if name in OVERWRITE:
        parser.add_argument("--force", action="store_true")
    hints, lists = hints_of(command), lists_of(command)
    for parameter in parameters_of(command).values():
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.name in lists:
            parser.add_argument(parameter.name, nargs="*", default=argparse.SUPPRESS)
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            # Suppressed, an absent word leaves alone what the configuration file says.
            absent: dict[str, Any] = (
                {} if parameter.default is parameter.empty else {"nargs": "?", "default": argparse.SUPPRESS}
            )
            parser.add_argument(parameter.name, type=str, **absent)
        elif hints[parameter.name] is bool:
            parser.add_argument(f"--{parameter.name}", action="store_true")
        elif parameter.name in lists:
            parser.add_argument(f"--{parameter.name}", action="append", default=[])
        else:
            needed = parameter.default is parameter.empty
            given: dict[str, Any] = {"required": True} if needed else {"default": parameter.default}
            parser.add_argument(f"--{parameter.name}", type=hints[parameter.name], **given)
    return parser


def lists_of(command: Command) -> dict[str, Any]:
    """Return the list options of a command, each with the hint of its items."""
    hints = hints_of(command, include_extras=True)
    return {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is list}


def _items(name: str, value: object, hint: Any) -> list[Any]:
    """Return the items of a list option, also of one item and of items with commas between, unless they are text."""
    values: list[Any] = value if isinstance(value, list) else [value]
    if hint is not str:
        parts = [part.strip() for item in values for part in str(item).split(",")]
        return [_item(name, part, hint) for part in parts if part or len(parts) == 1]
    for item in values:
        if not isinstance(item, str):
            raise UserError(f"--{name} has {item!r}: give text, in quotes.")
    return values


def _item(name: str, text: str, hint: Any) -> Any:
    if get_origin(hint) is Literal and text not in get_args(hint):
        raise UserError(f"--{name} has {text!r}: give one of {', '.join(get_args(hint))}.")
    if hint is not int:
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--{name} has {text!r}: give whole numbers, with commas between.") from None


@contextmanager
def _config_first(words: Sequence[str]) -> Iterator[list[str]]:
    """Move `--config FILE` before what overrides it, and check it; read `--max-new-tokens` as `--max_new_tokens`."""
    files: list[str] = []
    others: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--":
            others += [word, *remaining]
        elif word.startswith("--"):
            option, equals, value = word.partition("=")
            option = option.replace("-", "_").replace("__", "--", 1)
            if option == "--config":
                file = [value] if equals else _at_most_one(remaining)
                files += file
                others += [] if file else [option]  # which then lacks its value
            else:
                others.append(option + equals + value)
        else:
            others.append(word)
    with tempfile.TemporaryDirectory() as folder:
        config = []
        for number, text in enumerate(filter(None, map(read_config_file, files))):
            copy = Path(folder) / f"{number}.yaml"
            copy.write_text(text, encoding="utf-8")
            config += [f"--config={copy}"]
        yield config + others


def _at_most_one(words: Iterable[str]) -> list[str]:
    for word in words:
        return [word]
    return []
