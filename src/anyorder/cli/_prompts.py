"""Where the prompts of a command line come from: a word, standard input, a file, or what is typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """

    prompt: Any
    others: dict[str, Any] = field(default_factory=dict)


def has_gap(prompt: Any) -> bool:
    """Whether a text has `[...]`, or token ids -1."""
    return "[...]" in prompt if isinstance(prompt, str) else -1 in prompt


def read_prompts(prompt: str | None, prompts_file: Path | None) -> list[GivenPrompt]:
    """Read all prompts of the command line, in order.

    Args:
        prompt: text; "-" and None mean standard input, read as one prompt.
        prompts_file: a file with a prompt in each line; with `JSON_LINES` in its name, a string or an object in each.
            "-" is standard input, of which each line is JSON if all lines are strings or objects of JSON.

    Raises:
        UserError: both are given, there is no prompt, or a line has none.
    """
    if prompts_file is None:
        return [GivenPrompt(_standard_input().removesuffix("\n") if prompt in (None, "-") else str(prompt))]
    name = str(prompts_file)
    if prompt is not None:
        raise UserError(f"a prompt is given beside prompts_file, which is {name!r}: leave out one of them.")
    text = _standard_input() if name == "-" else _decode(prompts_file.read_bytes(), name)
    # Not splitlines, which also cuts at characters that a prompt may have.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text.strip() else []
    if not lines:
        raise UserError(f"prompts_file is {name!r}, which is empty: write one prompt in each line.")
    if prompts_file.suffix.lower() in JSON_LINES or (name == "-" and _are_json(lines)):
        return [
            _of_json(line, f"line {number} of {name!r}") for number, line in enumerate(lines, start=1) if line.strip()
        ]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise UserError(
                f"line {number} of {name!r} is empty: write a prompt in it, or delete it; prompts of several lines go "
                f"into a file whose name ends in {JSON_LINES[0]}, one JSON string a line."
            )
    return [GivenPrompt(line) for line in lines]


def _are_json(lines: list[str]) -> bool:
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
        return GivenPrompt(value)
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
    return GivenPrompt(prompt, {key: other for key, other in value.items() if key not in PROMPT_KEYS})


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
    if sys.stdin.isatty():
        print("type the prompt, then Ctrl-D:", file=sys.stderr)
    return _decode(sys.stdin.buffer.read(), "standard input")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 at byte {error.start}: convert it to UTF-8.") from None
