"""Values from files of JSON: one per line, the items of an array, or one behind the other; never all at once."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from anyorder.data.forms import is_message
from anyorder.data.lines import BOM, lines, wide_problem
from anyorder.data.records import BadLines, Place
from anyorder.errors import UserError

PIECE = 1 << 16
"""Bytes that are read at a time, where values go over lines."""

WHITESPACE = " \t\r\n," + BOM
"""Characters between values; a comma parts them as a blank does."""

NEAR = 32
"""Characters at the end of a piece in which an error may come from what is not read yet."""

Opener = Callable[[], IO[bytes]]


def read_json(file: Path, opened: Opener, bad_lines: BadLines) -> Iterator[tuple[Place, Any]]:
    """Yield the values of a file, each with the line it begins in.

    How they are parted is found out from the beginning, since people give files of lines and of arrays either ending.

    Args:
        file: what to call it.
        opened: opens it at its beginning.
        bad_lines: what happens to those that cannot be read.
    """
    if _begins_with_a_line(file, opened):
        yield from _one_per_line(file, opened, bad_lines)
    else:
        yield from _over_lines(file, opened, bad_lines)


def _begins_with_a_line(file: Path, opened: Opener) -> bool:
    """Return whether the first line is an object, or at least no beginning of what goes over several lines."""
    with opened() as stream:
        head = b""
        while not head.strip() and (piece := stream.readline(PIECE)):
            head = piece.removeprefix(codecs.BOM_UTF8)
        if wide_problem(head):
            return True
        if head.lstrip()[:1] == b"[":
            return False
        try:
            decode((head if head.endswith(b"\n") else head + stream.readline()).decode().strip())
            return True
        except (ValueError, RecursionError):
            pass
    return next(_over_lines(file, opened, BadLines(skip=True)), None) is None


def _one_per_line(file: Path, opened: Opener, bad_lines: BadLines) -> Iterator[tuple[Place, Any]]:
    with opened() as stream:
        for place, text in lines(file, stream, bad_lines):
            if not text.strip():
                continue
            try:
                value = decode(text)
            except (ValueError, RecursionError) as error:
                bad_lines.refuse(place, f"is not JSON ({_reason(error)})", "write one JSON object per line")
            else:
                yield place, value


def _over_lines(file: Path, opened: Opener, bad_lines: BadLines) -> Iterator[tuple[Place, Any]]:
    """Yield the items of arrays, and values beside them; a list of messages is one value."""
    with opened() as stream:
        text = _Stream(stream)
        in_array = False
        place = Place(file, 1)
        try:
            while True:
                character = text.skip()
                place = Place(file, text.line)
                if not character:
                    if in_array:
                        bad_lines.refuse(place, "ends before its list does", "fetch or export it again")
                    return
                if character == ("]" if in_array else "["):
                    in_array = not in_array and not text.begins_dialogue()
                    if in_array or character == "]":
                        text.at += 1
                        continue
                yield place, text.value()
        except UserError:  # of a line that is refused, or of who reads this
            raise
        except UnicodeDecodeError as error:
            at = Place(file, text.line_of(error))
            bad_lines.refuse(at, f"has bytes that are not UTF-8 ({error.reason})", "convert the file to UTF-8")
        except (ValueError, RecursionError) as error:
            bad_lines.refuse(place, f"is not JSON from here on ({_reason(error, text.column)})", "mend it")


class _Stream:
    """Text that is read as far as it is needed.

    Attributes:
        at: place in the text at hand.
        line: of that place in the whole, from 1.
        column: characters of the first line at hand that are no longer so.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.at, self.line, self.column = 0, 1, 0
        self._stream, self._text, self._ended = stream, "", False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def skip(self) -> str:
        """Return the next character that is neither blank nor a comma, which separates values too; "" at the end."""
        while True:
            begin = self.at
            while self.at < len(self._text) and self._text[self.at] in WHITESPACE:
                self.at += 1
            self.line += self._text.count("\n", begin, self.at)
            if self.at < len(self._text) or not self._read():
                return self._text[self.at : self.at + 1]

    def value(self) -> Any:
        """Return the value that begins here."""
        value, size = self._decode()
        self.line += self._text.count("\n", self.at, self.at + size)
        self.at += size
        return value

    def begins_dialogue(self) -> bool:
        """Return whether a list of messages begins here."""
        offset = 1
        while self._text[self.at + offset : self.at + offset + 1] in WHITESPACE:
            # The empty text, where the piece ends, is in every other.
            offset += self.at + offset < len(self._text)
            if self.at + offset == len(self._text) and not self._read():
                return False
        try:
            return is_message(self._decode(offset)[0])
        except (ValueError, RecursionError):
            return False  # reading the list finds it again

    def line_of(self, error: UnicodeDecodeError) -> int:
        """Return the line of bytes that cannot be decoded."""
        return self.line + self._text.count("\n", self.at) + error.object.count(b"\n", 0, error.start)

    def _decode(self, offset: int = 0) -> tuple[Any, int]:
        """Return the value that begins so many characters further on, and how many it has."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.at + offset)
            except json.JSONDecodeError as error:
                near = error.msg.startswith("Unterminated") or error.pos > len(self._text) - NEAR
                if not (near and self._read()):
                    raise
            else:
                if end < len(self._text) or not self._read():
                    return value, end - self.at - offset

    def _read(self) -> bool:
        """Read on, at least as much as is at hand, so that long values are not tried too often."""
        rest = len(self._text) - self.at
        data = self._stream.read(max(PIECE, rest))
        more = self._decoder.decode(data, final=not data)
        newline = self._text.rfind("\n", 0, self.at)
        self.column = self.column + self.at if newline < 0 else self.at - newline - 1
        self._text, self.at = self._text[self.at :] + more, 0
        return bool(data)


def decode(text: str) -> Any:
    """Return the JSON value that a text is.

    Raises:
        ValueError: it is none, or an object has a field twice.
        RecursionError: it is nested too deeply.
    """
    value, end = DECODER.raw_decode(text, len(text) - len(text.lstrip(WHITESPACE)))
    if rest := text[end:].strip():
        raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the field {twice[:40]!r} twice")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _reason(error: Exception, column: int = 0) -> str:
    """Describe an error without its line, which counts from where the parser began."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno + (column if error.lineno == 1 else 0)}"
    if "integer string conversion" in str(error):
        return "a number has thousands of digits"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
