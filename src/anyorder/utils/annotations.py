"""Values at the public border, compared with the annotations of records and functions.

A value of the wrong kind is refused by name, before it ends in a TypeError somewhere inside. What says the same in
another form is converted: NumPy's scalars and tensors without dimensions to numbers, strings to paths where a path is
wanted, lists to tuples.
"""

from __future__ import annotations

import builtins
import collections.abc
import dataclasses
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from anyorder.errors import UserError
from anyorder.utils.numbers import is_whole
from anyorder.utils.other_names import other_name

Listed = Annotated[str, "no commas"]
"""An item of a list that may be written with commas between on the command line: a name or numbers, no free text."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

LARGEST = 2**64 - 1
"""The largest whole number that PyTorch takes anywhere, as a seed; no quantity is above it."""

LONGEST_NAME = 255
"""Bytes that file systems allow in the name of a file or folder."""

SHOWN = 100
"""Characters of a value that an error shows."""


def check_fields(record: Any, called: str = "{}") -> None:
    """Compare the fields of a dataclass with their annotations; the first line of its `__post_init__`.

    Args:
        record: an instance; fields that are converted are set anew, in a frozen one too.
        called: how an error names a field, a format of its name.

    Raises:
        UserError: a field has a value of another kind.
    """
    record_type: Any = type(record)
    for name, kind in _fields(record_type).items():
        value = getattr(record, name)
        fit = _fit(called.format(name), value, kind)
        if fit is not value:
            object.__setattr__(record, name, fit)


def requirement(record: Any, called: str = "{}") -> Callable[[str, bool, str], None]:
    """Return a function `require(name, holds, remedy)`, which refuses the value of a field unless a condition holds.

    Args:
        record: an instance.
        called: how an error names a field, a format of its name.
    """

    def require(name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise UserError(f"{called.format(name)} is {shown(getattr(record, name))}: {remedy}.")

    return require


def checked(
    *read_inside: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator: the function compares its arguments with its annotations first.

    A keyword for which there is no parameter, but a name of ours or one that is much like it, is refused with that
    name; others stay Python's own TypeError.

    Args:
        read_inside: parameters of many forms, which the function reads and refuses itself.

    Raises:
        UserError: an argument is of another kind; raised by the function that is decorated.
    """
    return lambda function: _checked(function, read_inside)


def fitted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by name, compared with the annotations of the function or record, and converted.

    Raises:
        UserError: one is of another kind.
    """
    kinds = _kinds(inspect.get_annotations(function), vars(sys.modules[function.__module__]))
    return {name: _fit(name, value, kinds[name]) if name in kinds else value for name, value in arguments.items()}


def _checked(function: Callable[Parameters, Result], read_inside: Sequence[str]) -> Callable[Parameters, Result]:
    parameters = inspect.signature(function).parameters
    named = [
        parameter.name
        for parameter in parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]

    @functools.cache
    def kinds() -> dict[str, Kind]:  # with the first call, when all modules are complete
        found = _kinds(inspect.get_annotations(function), _names_of(function.__module__))
        return {name: kind for name, kind in found.items() if name not in read_inside}

    @functools.wraps(function)
    def with_checks(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        known = kinds()
        refuse_other_names(function.__name__, keywords, parameters)
        given: Any = list(arguments)
        for index, (name, value) in enumerate(zip(named, arguments, strict=False)):
            if name in known:
                given[index] = _fit(name, value, known[name])
        for name, value in keywords.items():
            if name in known:
                keywords[name] = _fit(name, value, known[name])
        return function(*given, **keywords)

    return with_checks


class UnknownKeywordError(UserError, TypeError):
    """A keyword that a function does not have."""


def refuse_other_names(
    function: str, keywords: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> None:  # fmt: skip
    """Refuse keywords that are names elsewhere of parameters of a function, or much like one.

    Raises:
        UnknownKeywordError: see above.
    """
    if keywords.keys() <= parameters.keys():
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in keywords.keys() - parameters.keys():
        ours, _, value = (other_name(name, parameters) or "").partition(" ")
        close = get_close_matches(name, parameters, n=1, cutoff=0.7)
        if ours:
            typed = f"{ours}={value if value[0].isdigit() else repr(value)}" if value else ours
            raise UnknownKeywordError(f"{function} has no {name}: the name is {typed}.")
        if close:
            raise UnknownKeywordError(f"{function} has no {name}: did you mean {close[0]}?")


def shown(value: object) -> str:
    """Return a value in the words of an error: its `repr`, shortened."""
    shape = getattr(value, "shape", None)
    if shape:
        return f"{type(value).__name__} of shape {list(shape)}"
    try:
        text = repr(value)
    except Exception:  # of integers with thousands of digits, and of whatever a foreign class does
        return f"{_a(type(value).__name__)} that cannot be shown"
    text = text if "\n" not in text else " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# ---- kinds ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AtMost:
    """In `Annotated[int, AtMost(100)]`: the largest size of a number, whatever its sign."""

    limit: float


class UnfitError(Exception):
    """A value of another kind; its text replaces what the kind says is wanted, where there is one."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an annotation admits.

    Attributes:
        wanted: in words, such as "a whole number".
        fit: the value, converted where it has to be; raises `UnfitError`.
        many: in words, for several of them.
    """

    wanted: str
    fit: Callable[[Any], Any]
    many: str = ""


def _fit(name: str, value: Any, kind: Kind) -> Any:
    try:
        return kind.fit(value)
    except UnfitError as unfit:
        telling = value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))
        of_kind = "" if telling or getattr(value, "shape", None) else f", {_a(_class_name(value))}"
        raise UserError(f"{name} is {shown(value)}{of_kind}: give {str(unfit) or kind.wanted}.") from None


def _class_name(value: object) -> str:
    return "class" if isinstance(value, type) else type(value).__name__


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"


def _plain(value: Any) -> Any:
    """Return the number in a NumPy scalar, or in an array or tensor without dimensions."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _whole(value: Any) -> int:
    number = _plain(value)
    if not is_whole(number):
        raise UnfitError
    if abs(number) > LARGEST:
        raise UnfitError("a smaller number")
    return number


def _number(value: Any) -> float:
    number = _plain(value)
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise UnfitError
    if isinstance(number, float) and not math.isfinite(number):
        raise UnfitError("a finite number")
    if abs(number) > sys.float_info.max:
        raise UnfitError("a smaller number")
    return float(number) if abs(number) > LARGEST else number  # PyTorch takes no larger whole numbers


def _truth(value: Any) -> bool:
    truth = _plain(value)
    if not isinstance(truth, bool):
        raise UnfitError
    return truth


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnfitError
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise UnfitError
    path = value if isinstance(value, Path) else Path(os.fsdecode(value))
    if "\0" in str(path):
        raise UnfitError("a path without the character NUL")
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except UnicodeEncodeError:
        raise UnfitError("a path without halves of characters (surrogates)") from None
    if longest > LONGEST_NAME:
        raise UnfitError(f"a path whose names have at most {LONGEST_NAME} bytes")
    return path


def _none(value: Any) -> None:
    if value is not None:
        raise UnfitError


def _function(value: Any) -> Any:
    if not callable(value):
        raise UnfitError
    return value


ANYTHING = Kind("another value", lambda value: value, "values")

SIMPLE: dict[Any, Kind] = {
    int: Kind("a whole number", _whole, "whole numbers"),
    float: Kind("a number", _number, "numbers"),
    bool: Kind("True or False", _truth, "booleans"),
    str: Kind("a string", _text, "strings"),
    Path: Kind("a path", _path, "paths"),
    None: Kind("None", _none),
    types.NoneType: Kind("None", _none),
}
"""What an annotation admits; classes that admit more than their own objects enter themselves."""


class TokenizerLike:
    """Stands for the tokenizers of transformers, which is not imported for a check."""


def is_tokenizer(value: Any) -> bool:
    """Return whether an object can be called and decodes, as tokenizers and processors of transformers do."""
    return callable(value) and hasattr(value, "decode")


def _tokenizer(value: Any) -> Any:
    if hasattr(value, "parameters"):
        raise UnfitError(NETWORK_FIRST)
    if not is_tokenizer(value):
        raise UnfitError
    return value


NETWORK_FIRST = "the network first and then the tokenizer, as model, tokenizer = anyorder.load(path) does"

SIMPLE[TokenizerLike] = Kind("a tokenizer: model, tokenizer = anyorder.load(path)", _tokenizer, "tokenizers")

BY_NAME = {"PreTrainedTokenizerBase": TokenizerLike}
"""Replacements of names that modules import for type checkers alone."""


# ---- from annotations to kinds ----------------------------------------------------------------------


@functools.cache
def _fields(record: Any) -> dict[str, Kind]:
    names = [field.name for field in dataclasses.fields(record)]
    kinds: dict[str, Kind] = {}
    for parent in reversed(record.__mro__):
        kinds |= _kinds(inspect.get_annotations(parent), _names_of(parent.__module__))
    return {name: kinds[name] for name in names}


def _names_of(module: str) -> Mapping[str, Any]:
    """Return the names of a module; none of code from a file or a notebook, which may be no module."""
    return vars(sys.modules[module]) if module in sys.modules else {}


def _kinds(annotations: Mapping[str, Any], module: Mapping[str, Any]) -> dict[str, Kind]:
    return {name: _kind(_evaluated(annotation, module)) for name, annotation in annotations.items()}


class _Names(dict[str, Any]):
    """A module's names, where one that is imported for type checkers alone admits anything, or see `BY_NAME`."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, BY_NAME.get(name, Any))


def _evaluated(annotation: Any, module: Mapping[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, globalns=dict(module), localns=_Names(module), include_extras=True)["it"]
    except (TypeError, AttributeError):  # `module.Class` or `Alias[int]`, where the first name admits anything
        return Any


def _kind(hint: Any) -> Kind:
    """Return what a type hint admits; of hints that it does not know, anything."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return ANYTHING
    if hint in SIMPLE:
        return SIMPLE[hint]
    if origin in (typing.Union, types.UnionType):
        return _union([_kind(item) for item in inner])
    if origin is Literal:
        return _literal(inner)
    if origin is typing.Annotated:
        return _limited(_kind(inner[0]), [extra.limit for extra in inner[1:] if isinstance(extra, AtMost)])
    if hint is tuple or origin is tuple:
        return _tuple(inner)
    if hint is list or origin in (list, collections.abc.Sequence):
        return _sequence(_kind(inner[0]) if inner else ANYTHING)
    if hint is dict or origin in (dict, collections.abc.Mapping):
        return _mapping(*(_kind(item) for item in inner)) if inner else _mapping(ANYTHING, ANYTHING)
    if hint is collections.abc.Callable or origin is collections.abc.Callable:
        return Kind("a function", _function, "functions")
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        return _object(hint)
    return ANYTHING


def _limited(kind: Kind, limits: Sequence[float]) -> Kind:
    """Return numbers of a kind that are no larger."""

    def fit(value: Any) -> Any:
        fitted = kind.fit(value)
        for limit in limits:
            if abs(fitted) > limit:
                raise UnfitError(f"at most {limit:,.0f}")
        return fitted

    return Kind(kind.wanted, fit, kind.many) if limits else kind


def _union(kinds: Sequence[Kind]) -> Kind:
    def fit(value: Any) -> Any:
        remedy = ""
        for kind in kinds:
            try:
                return kind.fit(value)
            except UnfitError as unfit:
                remedy = remedy or str(unfit)
        raise UnfitError(remedy)

    def joined(words: Sequence[str]) -> str:
        words = list(dict.fromkeys(word for word in words if word))
        return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])}, or {words[-1]}"

    # A string has no NUL where it may be a path.
    if SIMPLE[Path] in kinds and SIMPLE[str] in kinds:
        kinds = [SIMPLE_PATH if kind == SIMPLE[Path] else kind for kind in kinds if kind != SIMPLE[str]]
    last = [kind for kind in kinds if kind == SIMPLE[None]]
    kinds = [kind for kind in kinds if kind != SIMPLE[None]] + last
    return Kind(joined([kind.wanted for kind in kinds]), fit, joined([kind.many for kind in kinds]))


def _as_it_is(value: Any) -> Any:
    path = _path(value)
    return value if isinstance(value, (str, Path)) else path


SIMPLE_PATH = Kind("a path", _as_it_is, "paths")


def _literal(options: Sequence[Any]) -> Kind:
    def fit(value: Any) -> Any:
        plain = _plain(value)
        if not any(type(plain) is type(option) and plain == option for option in options):
            raise UnfitError
        return plain

    words = repr(options[0]) if len(options) == 1 else f"one of {', '.join(map(str, options))}"
    return Kind(words, fit, words)


def _items(value: Any) -> list[Any]:
    """Return the items of what has some in order: a list, a tuple, a range, an array, no string and no mapping."""
    ordered = isinstance(value, Sequence) or (hasattr(value, "__len__") and hasattr(value, "__getitem__"))
    if not ordered or isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) == 0:
        raise UnfitError
    return list(value)


def _sequence(item: Kind) -> Kind:
    def fit(value: Any) -> Any:
        items = _items(value)
        try:
            fitted = [item.fit(each) for each in items]
        except UnfitError:
            raise UnfitError from None
        same = all(new is old for new, old in zip(fitted, items, strict=True))
        if isinstance(value, Sequence) and (same or not isinstance(value, (list, tuple))):
            return value
        return type(value)(fitted) if isinstance(value, tuple) else fitted  # arrays become lists

    of = f"a list of {item.many or item.wanted}" if item != ANYTHING else "a list"
    return Kind(of, fit, of.replace("a list", "lists", 1))


def _tuple(inner: Sequence[Any]) -> Kind:
    if not inner or inner[-1] is Ellipsis:
        listed = _sequence(_kind(inner[0]) if inner else ANYTHING)
        return Kind(listed.wanted, lambda value: _tupled(value, listed.fit(value)), listed.many)
    kinds = [_kind(item) for item in inner]

    def fit(value: Any) -> Any:
        items = _items(value)
        if len(items) != len(kinds):
            raise UnfitError
        return _tupled(value, [kind.fit(item) for kind, item in zip(kinds, items, strict=True)])

    wanted = " and ".join(kind.wanted for kind in kinds)
    return Kind(wanted, fit, f"pairs of {wanted}" if len(kinds) == 2 else f"lists of {wanted}")


def _tupled(value: Any, fitted: Any) -> Any:
    items = tuple(fitted)
    same = isinstance(value, tuple) and all(new is old for new, old in zip(items, value, strict=True))
    return value if same else items


def _mapping(key: Kind, value: Kind) -> Kind:
    def fit(given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise UnfitError
        for name, item in given.items():
            key.fit(name)
            value.fit(item)
        return given

    words = "" if value == ANYTHING else f" from {key.many or key.wanted} to {value.many or value.wanted}"
    return Kind(f"a dict{words}", fit, f"dicts{words}")


PLAIN = (
    str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, range, slice, types.NoneType,
    types.EllipsisType, types.NotImplementedType, Path, type, types.FunctionType, BaseException,
    collections.abc.Iterator,
)  # fmt: skip


def _object(kind: type) -> Kind:
    """Admit objects of a class and what may replace them, such as a network with adapters around it; no plain data.

    Nothing may replace records and PyTorch's own, such as tensors.
    """
    alone = kind.__module__.partition(".")[0] == "torch" or dataclasses.is_dataclass(kind)

    def fit(value: Any) -> Any:
        if not isinstance(value, kind) and (alone or isinstance(value, PLAIN) or hasattr(value, "ndim")):
            raise UnfitError
        return value

    return Kind(f"an object of the class {kind.__name__}", fit, f"objects of the class {kind.__name__}")
