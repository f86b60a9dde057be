"""From a typed function to a parser, and from any error to one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser

from anyorder.cli._config_file import read_config_file
from anyorder.cli._other_names import other_name
from anyorder.errors import UserError
from anyorder.utils.annotations import fitted, shown


def parse(
    name: str, command: Callable[..., None], words: Sequence[str], below: Sequence[str] = ()
) -> dict[str, Any]:  # fmt: skip
    """The keywords for `command` that a command line asks for.

    Positional parameters of the function become words (of type `list[str]`, any number of them), keyword-only ones
    options; `bool` options are bare flags. A list option may be repeated, and of one that is no list of free text
    (`list[int]`, `list[Listed]`, a list of a `Literal`) the items may stand with commas between, too. `--config FILE`
    sets any of them, and the rest of the command line, wherever it stands, overrides the file. A command whose only
    parameter is a dataclass has the fields of that as its parameters.

    Args:
        name: of the command, for messages. The function's own is no help: jsonargparse looks up what it
            is given in the package by that name, and `anyorder.generate` would import everything.
        command: function with type hints and a docstring that explains every parameter.
        words: the command line after the command's name.
        below: commands below this one, for its help.

    Raises:
        UserError: a word, an option or a value that the command does not take.
        SystemExit: after `--help`.
    """
    settings = _settings(command)
    target = command if settings is None else settings[1]
    parser = _parser(name, target, command.__doc__ or "")
    if below:
        parser.epilog = f"Below it: {', '.join(f'anyorder {name} {sub}' for sub in below)}."
    try:
        with _config_first(words) as ordered:
            values = parser.parse_args(ordered).as_dict()
    except ArgumentError as error:
        raise UserError(_explain(name, target, error.message)) from None
    kept = {key: value for key, value in values.items() if key in inspect.signature(target).parameters}
    lists = _lists(target)
    for key in kept.keys() & lists.keys():
        kept[key] = _items(key, kept[key], lists[key])
    return fitted(target, kept) if settings is None else {settings[0]: settings[1](**kept)}


def _settings(command: Callable[..., None]) -> tuple[str, type] | None:
    """Name and class of the only parameter, if that is a dataclass."""
    parameters = inspect.signature(command).parameters
    hints = [(name, hint) for name, hint in get_type_hints(command).items() if name in parameters]
    return hints[0] if len(hints) == 1 and dataclasses.is_dataclass(hints[0][1]) else None


def options(command: Callable[..., None]) -> set[str]:
    """The names of what a command takes."""
    settings = _settings(command)
    return {"config", *inspect.signature(command if settings is None else settings[1]).parameters}


def explanations(target: Callable[..., None] | type) -> dict[str, str]:
    """What the docstring says of each parameter; of a dataclass, what those that it derives from say too."""
    texts = [kind.__doc__ for kind in reversed(target.__mro__)] if isinstance(target, type) else [target.__doc__]
    explained = [parameter for text in texts for parameter in parse_docstring(text or "").params]
    return {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in explained}


def one_sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names) or 'a file'} cannot be used: {error.strerror}."
    return " ".join(str(error).split())


def _parser(name: str, command: Callable[..., None] | type, about: str) -> ArgumentParser:
    help_of = explanations(command)
    parser = ArgumentParser(
        prog=f"anyorder {name}", description=parse_docstring(about).description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML or JSON file with values for any of these.")
    hints = get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        text = help_of[parameter.name]
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.name in _lists(command):
            parser.add_argument(parameter.name, nargs="*", default=argparse.SUPPRESS, help=text)
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            # Suppressed, an absent word leaves alone what the configuration file says.
            absent: dict[str, Any] = (
                {} if parameter.default is parameter.empty else {"nargs": "?", "default": argparse.SUPPRESS}
            )
            parser.add_argument(parameter.name, type=str, help=text, **absent)
        elif hints[parameter.name] is bool:
            parser.add_argument(f"--{parameter.name}", action="store_true", help=text)
        elif parameter.name in _lists(command):
            parser.add_argument(f"--{parameter.name}", action="append", default=[], help=text)
        else:
            needed = parameter.default is parameter.empty
            given: dict[str, Any] = {"required": True} if needed else {"default": parameter.default}
            hint = hints[parameter.name]
            if get_origin(hint) is Literal:  # whose choices would make the usage wider than a terminal
                given["metavar"] = parameter.name.upper()
            parser.add_argument(f"--{parameter.name}", type=hint, help=text, **given)
    return parser


def _lists(command: Callable[..., None] | type) -> dict[str, Any]:
    """The list options of a command, each with the hint of its items."""
    hints = get_type_hints(command, include_extras=True)
    return {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is list}


def _items(name: str, value: object, hint: Any) -> list[Any]:
    """One item, or a list of them, as a configuration file may say it; with commas between unless they are text."""
    values: list[Any] = value if isinstance(value, list) else [value]
    if hint is not str:
        parts = [part.strip() for item in values for part in str(item).split(",")]
        return [_item(name, part, hint) for part in parts if part or len(parts) == 1]
    for item in values:
        if not isinstance(item, str):
            raise UserError(f"option {name} has {item!r}: give text, in quotes.")
    return values


def _item(name: str, text: str, hint: Any) -> Any:
    if get_origin(hint) is Literal and text not in get_args(hint):
        raise UserError(f"option {name} has {text!r}: give one of {', '.join(get_args(hint))}.")
    if hint is not int:
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"option {name} has {text!r}: give whole numbers, with commas between.") from None


@contextmanager
def _config_first(words: Sequence[str]) -> Iterator[list[str]]:
    """`--config FILE` moved before what overrides it, and checked; `--max-new-tokens` read as `--max_new_tokens`."""
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


def _explain(name: str, command: Callable[..., None] | type, message: str) -> str:
    """jsonargparse's message as one sentence with the remedy."""
    see = f"see `anyorder {name} --help`"
    text = " ".join(message.split())
    if match := re.search(r"arguments are required: (.*)", text):
        return f"argument {match[1]} is missing: {see}."
    if match := re.search(r"unrecognized arguments: (\S+)|Option '(\w+)' is not accepted", text):
        return _explain_unknown(match[1] or f"--{match[2]}", command, see)
    if match := re.search(r'Parser key "([^"]+)": Exceeds the limit', text):
        return f"option {match[1]} has thousands of digits: give a smaller number."
    if match := re.search(r'Parser key "([^"]+)": (.*?)(?:Got|Given) value: (.*)', text):
        kinds = re.findall(r"<class '(?:\w+\.)*(\w+)'>", match[2].partition("Errors:")[0])
        literals = re.findall(r"Literal\[(.*?)\]", match[2])
        wanted = [{"int": "a whole number", "float": "a number", "str": "text"}.get(kind, kind) for kind in kinds]
        wanted = [*(f"one of {literal}" for literal in literals), *(kind for kind in wanted if kind != "NoneType")]
        return f"option {match[1]} is {shown(match[3])}: give {' or '.join(dict.fromkeys(wanted)) or 'another value'}."
    return f"{text}: {see}."


def _explain_unknown(word: str, command: Callable[..., None] | type, see: str) -> str:
    parameters = inspect.signature(command).parameters
    option = word.partition("=")[0].removeprefix("--")
    if option in parameters and parameters[option].kind is not inspect.Parameter.KEYWORD_ONLY:
        return f"option {word} is unknown: write its value alone, as a word."
    if not word.startswith("-") or option in parameters:
        return f"word {word!r} is one too many: put a text of several words in quotes, or {see}."
    if ours := other_name(option, parameters):
        if parameters[ours.partition(" ")[0]].kind is not inspect.Parameter.KEYWORD_ONLY:
            return f"option --{option} is unknown here: the name is {ours}, whose value stands alone, as a word."
        return f"option --{option} is unknown here: the name is --{ours}."
    close = get_close_matches(option, parameters, n=1, cutoff=0.7)
    return f"option {word} is unknown: {f'did you mean --{close[0]}?' if close else f'{see}.'}"
