"""What a line of data says, and the lines that say nothing of use.

Every record knows the file and the line that it came from, so that whatever turns out to be wrong with it later is told
with its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyorder.errors import UserError

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
ROLES = (SYSTEM, USER, ASSISTANT, TOOL)


@dataclass(frozen=True)
class Place:
    """Where a record begins; lines count from 1."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{str(self.file)!r}, line {self.line}"


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """A text whose tokens are known already.

    Attributes:
        form: the fields it was recognised by, as a person would name them.
        prompt_length: how many tokens at the beginning are the prompt; None where the text is not parted.
    """

    place: Place
    form: str
    ids: tuple[int, ...]
    prompt_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text to be learnt as a whole."""

    place: Place
    form: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one side says.

    Attributes:
        role: one of `ROLES`.
        content: all of it as plain text.
        learn: whether an answer is learnt; False makes it context only.
        given: the message in OpenAI's form (`content`, `reasoning_content`, `tool_calls`, ...), where it is more than
            its content.
    """

    role: str
    content: str
    learn: bool = True
    given: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Messages of which the assistant's are to be learnt: the last one is the assistant's.

    Attributes:
        tools: descriptions of the functions that the assistant may call, in the JSON form that chat templates take.
    """

    place: Place
    form: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Record = TokenIds | Document | Dialogue


@dataclass
class BadLines:
    """What happens to lines that cannot be used: the first one ends the reading, or all are counted and listed.

    Attributes:
        skip: whether they are left out instead of ending the reading.
        found: one sentence for each that was left out.
    """

    skip: bool = False
    found: list[str] = field(default_factory=list)

    def refuse(self, place: Place, problem: str, remedy: str) -> None:
        """Tells of one.

        Raises:
            UserError: unless they are skipped.
        """
        if not self.skip:
            raise UserError(
                f"{place}: {problem}: {remedy}, or leave such lines out (skip_bad_lines), which counts and lists them."
            )
        self.found.append(f"{place}: {problem}.")

    def summary(self, most: int = 5) -> str:
        """How many were left out, and the first ones."""
        shown = self.found[:most] + ["..."] * (len(self.found) > most)
        lines = "line" if len(self.found) == 1 else "lines"
        return "\n".join([f"{len(self.found)} {lines} left out", *(f"  {line}" for line in shown)])


def trained_part(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages from the first that is not the assistant's, system messages aside, to the last of the assistant's.

    An answer that nobody asked for has no prompt, and a question without an answer has nothing to learn.
    """
    begin = next((at for at, message in enumerate(messages) if message.role in (USER, TOOL)), len(messages))
    before = [message for message in messages[:begin] if message.role == SYSTEM]
    answers = [at for at, message in enumerate(messages) if message.role == ASSISTANT and at > begin]
    return (*before, *messages[begin : answers[-1] + 1]) if answers else ()
