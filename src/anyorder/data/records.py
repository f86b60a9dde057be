"""What a line of data says, and the lines that say nothing of use.

Every record keeps the file and the line that it came from, so that later errors can name its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anyorder.errors import UserError

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
ROLES = (SYSTEM, USER, ASSISTANT, TOOL)


@dataclass(frozen=True)
class Place:
    """Where a record begins; lines, and rows of tables that have no lines, count from 1."""

    file: Path
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{str(self.file)!r}, {self.unit} {self.line}"


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """A text whose tokens are known already.

    Attributes:
        form: the fields it was recognised by, as a person would name them.
        prompt_length: how many tokens at the beginning are the prompt; None where the text is not parted.
        answer_spans: begin and end of each run of tokens that are trained on; None where nothing says so.
    """

    place: Place
    form: str
    ids: tuple[int, ...]
    prompt_length: int | None = None
    answer_spans: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text to be trained on as a whole."""

    place: Place
    form: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Message:
    r"""What one side says.

    Attributes:
        role: one of `ROLES`.
        content: all of it as plain text: reasoning as `<think>\n...\n</think>\n\n` before, calls as JSON behind.
        trained: whether an answer is trained on; False makes it context only.
        given: the message in OpenAI's form (`role`, `content`, `reasoning_content`, `tool_calls`, ...), where it is
            more than its content; for chat templates.
    """

    role: str
    content: str
    trained: bool = True
    given: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Messages of which the assistant's are to be trained on: the last one is the assistant's.

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

    It also collects what else is not read.

    Attributes:
        skip: whether they are left out instead of ending the reading.
        may_skip: whether the caller has a setting for that, which the message of the first one then names.
        found: one sentence for each that was left out.
        passed_over: files of a folder that were not read, each with the reason.
        unread: fields with text that no form reads, each with the number of records that have it.
    """

    skip: bool = False
    may_skip: bool = True
    found: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def refuse(self, place: Place, problem: str, remedy: str) -> None:
        """Refuse a line, or count and list it.

        Raises:
            UserError: unless they are skipped.
        """
        problem = problem.encode("utf-8", "backslashreplace").decode()  # halves of characters cannot be printed
        if not self.skip:
            skipping = ", or leave such lines out (skip_bad_lines), which counts and lists them"
            raise UserError(f"{place}: {problem}: {remedy}{skipping if self.may_skip else ''}.")
        self.found.append(f"{place}: {problem}.")

    def summary(self, most: int = 5) -> str:
        """Return how many were left out, and the first ones."""
        shown = self.found[:most] + ["..."] * (len(self.found) > most)
        lines = "line" if len(self.found) == 1 else "lines"
        return "\n".join([f"{len(self.found)} {lines} left out", *(f"  {line}" for line in shown)])


def not_read(passed_over: Sequence[str], unread: Mapping[str, int], most: int = 3) -> list[str]:
    """Return a line on the files and one on the fields that were not read, each with the first ones."""
    fields = [f"`{name}` in {count:,} records" for name, count in sorted(unread.items())]
    files = "file" if len(passed_over) == 1 else "files"
    return [
        f"{begin}: {'; '.join([*items[:most], *['...'] * (len(items) > most)])}"
        for begin, items in ((f"passed over {len(passed_over)} {files}", passed_over), ("fields not read", fields))
        if items
    ]


def trained_part(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages from the first that is not the assistant's, but for the system's, to the assistant's last.

    An answer without a question has no prompt, and a question without an answer has no target.
    """
    begin = next((at for at, message in enumerate(messages) if message.role in (USER, TOOL)), len(messages))
    before = [message for message in messages[:begin] if message.role == SYSTEM]
    answers = [at for at, message in enumerate(messages) if message.role == ASSISTANT and at > begin]
    return (*before, *messages[begin : answers[-1] + 1]) if answers else ()


def with_last_answer_only(record: Record) -> Record:
    """Return the same, of which no answer but the last that is trained on is trained on."""
    if isinstance(record, TokenIds):
        return record if record.answer_spans is None else replace(record, answer_spans=record.answer_spans[-1:])
    if isinstance(record, Document):
        return record
    targets = [at for at, message in enumerate(record.messages) if message.role == ASSISTANT and message.trained]
    dropped = targets[:-1]
    messages = [
        replace(message, trained=False) if at in dropped else message for at, message in enumerate(record.messages)
    ]
    return replace(record, messages=tuple(messages))
