"""Write api.md, the reference of all public names of `anyorder`, from their docstrings; `make docs` runs this."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from inspect import Parameter
from pathlib import Path
from pkgutil import resolve_name
from types import FunctionType
from typing import Any

from docstring_parser import Docstring, DocstringStyle, parse
from docstring_parser.common import DocstringMeta

import anyorder

PAGE = Path(__file__).resolve().parent / "api.md"

WIDTH = 100
"""Of a signature, characters."""

OPENING = """\
# API reference

All names that `import anyorder` offers, then the classes of what they return. This page is generated from the
docstrings by `make docs` (`python docs/make_api.py`): change those, not this page. Guides are in the
[index](README.md); options of commands are told by `anyorder COMMAND --help`.

Mistakes of the caller raise `anyorder.errors.UserError`, a `ValueError` whose message is one sentence.
"""

FURTHER = ("anyorder.checkpoints.convert",)
"""Names that docstrings refer to for their arguments."""

HEADINGS = {"attribute": "attribute", "param": "argument", "raises": "raises"}


# ---------------------------------------------------------------------------------------------- names


def public() -> dict[str, Any]:
    """The names of the package, functions before classes."""
    objects = {name: getattr(anyorder, name) for name in sorted(anyorder.__all__, key=str.lower)}
    return dict(sorted(objects.items(), key=lambda item: inspect.isclass(item[1])))


def returned(objects: dict[str, Any]) -> dict[str, type]:
    """The package's classes that public functions return, and those of their fields."""
    found: dict[str, type] = {}
    waiting = [kind for item in objects.values() for kind in _named(item, "return")]
    while waiting:
        kind = waiting.pop(0)
        if kind.__name__ not in found and kind.__name__ not in objects:
            found[kind.__name__] = kind
            if dataclasses.is_dataclass(kind):
                waiting += [of for field in dataclasses.fields(kind) for of in _named(kind, field.name)]
    return found


def _named(item: Any, hint: str) -> list[type]:
    """The package's classes in the type of a function's result or of a field."""
    item = inspect.unwrap(item) if isinstance(item, FunctionType) else item
    annotation = getattr(item, "__annotations__", {}).get(hint, "")
    names = vars(sys.modules[item.__module__])
    words = [names.get(word) for word in re.findall(r"\w+", str(annotation))]
    return [kind for kind in words if inspect.isclass(kind) and kind.__module__.startswith("anyorder.")]


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties with a docstring, as they are written in the class."""
    for name, member in vars(kind).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and isinstance(function, property | FunctionType) and function.__doc__:
            yield name, member


# ---------------------------------------------------------------------------------------------- entries


def signature(name: str, item: Any) -> str:
    """A call of a function or class as Python writes it, with types and defaults."""
    given = inspect.signature(item)
    own = [parameter for parameter in given.parameters.values() if parameter.name not in ("self", "cls")]
    listed = [parameter(each) for each in own]
    kinds = [each.kind for each in own]
    if Parameter.KEYWORD_ONLY in kinds and Parameter.VAR_POSITIONAL not in kinds:
        listed.insert(kinds.index(Parameter.KEYWORD_ONLY), "*")
    result = "" if inspect.isclass(item) else f" -> {annotation(given.return_annotation)}"
    line = f"{name}({', '.join(listed)}){result}"
    lines = "".join(f"    {each},\n" for each in listed)
    return line if len(line) <= WIDTH else f"{name}(\n{lines}){result}"


def parameter(given: Parameter) -> str:
    """Such as "seed: int = 0"."""
    kinds: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
    stars = kinds.get(given.kind, "")
    kind = "" if given.annotation is Parameter.empty else f": {annotation(given.annotation)}"
    default = "" if given.default is Parameter.empty else f" = {given.default!r}"
    return f"{stars}{given.name}{kind}{default}"


def annotation(kind: Any) -> str:
    return kind if isinstance(kind, str) else inspect.formatannotation(kind)


def text(found: str | None) -> str:
    """A description on one line, safe in a table."""
    return " ".join((found or "").split()).replace("|", "\\|")


def described(docstring: str | None) -> Iterator[str]:
    """A docstring as paragraphs and tables."""
    parsed: Docstring = parse(inspect.cleandoc(docstring or ""), style=DocstringStyle.GOOGLE)
    for part in (parsed.short_description, parsed.long_description):
        if part:
            yield part.strip()
    for key, heading in HEADINGS.items():
        entries = [entry for entry in parsed.meta if entry.args[0] == key and len(entry.args) > 1]
        if entries:
            rows = [f"| `{_name(entry)}` | {text(entry.description)} |" for entry in entries]
            yield "\n".join([f"| {heading} | |", "|---|---|", *rows])
    if parsed.returns is not None and parsed.returns.description:
        yield f"Returns: {text(parsed.returns.description)}"


def _name(entry: DocstringMeta) -> str:
    return re.sub(r"\s*\(.*", "", entry.args[1])


def entry(name: str, item: Any, level: str = "##") -> Iterator[str]:
    """The paragraphs of one name, and of its members."""
    yield f"{level} {name}"
    if isinstance(item, FunctionType) or _is_record(item):
        yield f"```text\n{signature(name, item)}\n```"
    yield from described(item.__doc__)
    if inspect.isclass(item):
        for member, of in members(item):
            function = of.__func__ if isinstance(of, classmethod | staticmethod) else of
            yield from entry(f"{name}.{member}", function, level + "#")


def _is_record(item: Any) -> bool:
    """Whether it is a dataclass all of whose fields are the package's own, so that they are the same everywhere."""
    bases = inspect.getmro(item)[:-1] if dataclasses.is_dataclass(item) and inspect.isclass(item) else ()
    return bool(bases) and all(base.__module__.startswith("anyorder.") for base in bases)


def page() -> str:
    """The whole page."""
    objects = public()
    parts = [OPENING.strip()]
    parts += [part for name, item in objects.items() for part in entry(name, item)]
    parts.append("## Further names")
    parts += [part for name in FURTHER for part in entry(name, resolve_name(name), "###")]
    parts += [part for name, kind in returned(objects).items() for part in entry(name, kind, "###")]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
