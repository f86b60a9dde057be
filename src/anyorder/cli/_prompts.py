"""Where the prompts of a command line come from: a word, standard input, a file, or what is typed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from anyorder.errors import UserError
from anyorder.utils.annotations import shown

JSON_LINES = (".jsonl", ".ndjson")

PROMPT_KEYS = ("prompt", "text", "messages", "prompt_token_ids")
"""What a JSON object may call its prompt."""

RESULTS = ("prompt", "sample", "text", "full_text", "token_ids", "stopped", "trace")
"""The keys of a result, which no other key of an object may have."""


@dataclass(frozen=True)
class GivenPrompt:
    """A prompt.

    Attributes:
        prompt: text, token ids, or messages.
        others: what else its JSON object has, such as an id; goes into the JSON of the result.
        place: where it comes from, such as "line 3 of 'prompts.txt'"; empty where it is the only one.
    """

    prompt: Any
    others: dict[str, Any] = field(default_factory=dict)
    place: str = ""


def has_gap(prompt: Any) -> bool:
    """Whether a text has `[...]`, or token ids -1."""
    return "[...]" in prompt if isinstance(prompt, str) else -1 in prompt


def read_prompts(
    prompt: str | None, prompts_file: Path | None, convert: Callable[[GivenPrompt], GivenPrompt] = lambda given: given
) -> Collection[GivenPrompt]:
    """Return all prompts of the command line, in order.

    Args:
        prompt: text; "-" and None mean standard input, read as one prompt.
        prompts_file: see `PromptFile`; "-" is standard input.
        convert: applied to each prompt.

    Raises:
        UserError: both are given, there is no prompt, or a line has none.
    """
    if prompts_file is None:
        return [convert(GivenPrompt(_standard_input().removesuffix("\n") if prompt in (None, "-") else str(prompt)))]
    name = str(prompts_file)
    if prompt is not None:
        raise UserError(f"a prompt is given beside prompts_file, which is {name!r}: leave out one of them.")
    return PromptFile(prompts_file, convert)


class PromptFile(Collection[GivenPrompt]):
    """A file with a prompt in each line, read line by line each time that its prompts are gone through.

    With `JSON_LINES` in its name, each line is a string or an object of JSON. Standard input, "-", is kept; its lines
    are JSON if all of them are strings or objects. All lines are checked at once.

    Args:
        file: the file.
        convert: applied to each prompt.

    Attributes:
        has_gaps: whether any text has a gap.

    Raises:
        UserError: there is no prompt, or a line has none.
    """

    def __init__(self, file: Path, convert: Callable[[GivenPrompt], GivenPrompt] = lambda given: given) -> None:
        self._name, self._convert = str(file), convert
        if self._name == "-":
            kept = _standard_input_bytes()
        elif file.is_file():
            kept = None
        else:  # a pipe, which is read once, or what is no file at all
            kept = file.read_bytes()
        self._open: Callable[[], BinaryIO] = (lambda: file.open("rb")) if kept is None else (lambda: io.BytesIO(kept))
        if not any(line.strip() for _, line in self._lines()):
            raise UserError(f"prompts_file is {self._name!r}, which is empty: write one prompt in each line.")
        self._is_json = file.suffix.lower() in JSON_LINES or (
            self._name == "-" and _are_json(line for _, line in self._lines())
        )
        self._count, self.has_gaps = 0, False
        for given in self:
            self._count += 1
            self.has_gaps = self.has_gaps or (isinstance(given.prompt, str) and has_gap(given.prompt))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, given: object) -> bool:
        return any(given == one for one in self)

    def __iter__(self) -> Iterator[GivenPrompt]:
        for number, line in self._lines():
            place = f"line {number} of {self._name!r}"
            if self._is_json:
                if line.strip():
                    yield self._convert(_of_json(line, place))
            elif line:
                yield self._convert(GivenPrompt(line, place=place))
            else:
                raise UserError(
                    f"{place} is empty: write a prompt in it, or delete it; prompts of several lines go into a file "
                    f"whose name ends in {JSON_LINES[0]}, one JSON string a line."
                )

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the text of each line."""
        name = "standard input" if self._name == "-" else self._name
        offset = 0
        with self._open() as file:
            for number, data in enumerate(file, start=1):  # cut at no other character than the line feed
                line = _decode(data, name, offset).removesuffix("\n").removesuffix("\r")
                offset += len(data)
                yield number, line.removeprefix("\ufeff") if number == 1 else line


def _are_json(lines: Iterable[str]) -> bool:
    """Whether every line that is not blank is a JSON string or object."""
    try:
        return all(isinstance(json.loads(line), str | dict) for line in lines if line.strip())
    except (ValueError, RecursionError):
        return False


def _of_json(line: str, place: str) -> GivenPrompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(":")[0]
        raise UserError(f"{place} is not JSON ({reason}): write one JSON string or object in each line.") from None
    if isinstance(value, str):
        return GivenPrompt(value, place=place)
    if not isinstance(value, dict):
        raise UserError(f"{place} is {shown(value)}: write one JSON string or object in each line.")
    given = [key for key in PROMPT_KEYS if value.get(key) is not None]
    if len(given) != 1:
        has = f"the keys {', '.join(value)}" if not given else " and ".join(given)
        raise UserError(f"{place} has {has}: give the prompt under one of {', '.join(PROMPT_KEYS)}.")
    prompt = value.pop(given[0])
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and prompt):
        raise UserError(
            f"{place} has the {given[0]} {shown(prompt)}: give text, a list of messages, or a list of token ids."
        )
    if taken := [key for key in value if key in RESULTS and value[key] is not None]:
        raise UserError(f"{place} has the key {taken[0]}, which the result has itself: give it another name.")
    return GivenPrompt(prompt, {key: other for key, other in value.items() if key not in PROMPT_KEYS}, place)


def typed() -> Iterator[GivenPrompt]:
    """Yield prompts as they are typed, a line each, until Ctrl-D."""
    while (line := read_line()) is not None:
        if line.strip():
            yield GivenPrompt(line)


def read_line() -> str | None:
    """Read the next line, on a terminal with line editing and history; return None at the end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None
    if not sys.stdout.isatty():  # where input() would write its prompt
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None
    with suppress(ImportError):  # on Windows, whose terminals edit lines themselves
        import readline  # noqa: F401 (gives input() line editing and history)
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def _standard_input() -> str:
    return _decode(_standard_input_bytes(), "standard input").removeprefix("\ufeff")


def _standard_input_bytes() -> bytes:
    if sys.stdin.isatty():
        print("type the prompt, then Ctrl-D:", file=sys.stderr)
    return sys.stdin.buffer.read()


def _decode(data: bytes, name: str, offset: int = 0) -> str:
    """Decode what stands so many bytes behind the beginning of a file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 at byte {offset + error.start}: convert it to UTF-8.") from None
