"""What a command takes: its parameters, among which a dataclass counts as its fields.

So options that several commands share are written once, in `anyorder.cli._options`, and a command receives each group
of them as one record.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from docstring_parser import parse as parse_docstring

from anyorder.utils.annotations import fitted

Command = Callable[..., None]


def parameters_of(command: Command) -> dict[str, inspect.Parameter]:
    """Return the words and options of a command, by name."""
    groups = _groups(command)
    flat: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        flat |= inspect.signature(groups[name]).parameters if name in groups else {name: parameter}
    return flat


def options_of(command: Command) -> dict[str, inspect.Parameter]:
    """Return the parameters of a command that are options."""
    found = parameters_of(command)
    return {name: parameter for name, parameter in found.items() if parameter.kind is parameter.KEYWORD_ONLY}


def hints_of(command: Command, *, include_extras: bool = False) -> dict[str, Any]:
    """Return the type of each parameter; with `include_extras`, what `Annotated` adds to it."""
    groups = _groups(command)
    flat: dict[str, Any] = {}
    for name, hint in get_type_hints(command, include_extras=include_extras).items():
        flat |= get_type_hints(groups[name], include_extras=include_extras) if name in groups else {name: hint}
    return flat


def explanations(command: Command) -> dict[str, str]:
    """Return the explanation of each parameter in the docstrings."""
    explained = _explained(command)
    for group in _groups(command).values():
        explained |= field_explanations(group)
    return explained


def field_explanations(record: type) -> dict[str, str]:
    """Return the explanation of each field in the docstrings of a dataclass and of those that it derives from."""
    return {name: text for kind in reversed(record.__mro__) for name, text in _explained(kind).items()}


def arguments_of(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a command, of which each dataclass is made from its fields.

    Args:
        command: the function.
        values: of words and options, by name; others than the command's are left out.

    Raises:
        UserError: a value that cannot be.
    """
    groups = _groups(command)
    records = {
        name: group(**{field.name: values[field.name] for field in dataclasses.fields(group) if field.name in values})
        for name, group in groups.items()
    }
    names = inspect.signature(command).parameters.keys() - groups.keys()
    return fitted(command, {name: value for name, value in values.items() if name in names}) | records


def values_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of each word and option among the keywords of a command."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        is_group = dataclasses.is_dataclass(value)
        flat |= (
            {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            if is_group
            else {name: value}
        )
    return flat


def _groups(command: Command) -> dict[str, type]:
    """Return the dataclasses among the parameters of a command."""
    hints = get_type_hints(command)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def _explained(target: Command | type) -> dict[str, str]:
    parameters = parse_docstring(target.__doc__ or "").params
    return {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in parameters}
