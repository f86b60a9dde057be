"""Lines of text files, one at a time, however large the file is."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from anyorder.data.records import BadLines, Place

BOM = "\ufeff"
"""Some programs mark UTF-8 by this character at the beginning of a file, which stays there when files are joined."""

WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def lines(
    file: Path, stream: IO[bytes], bad_lines: BadLines, *, keep_ends: bool = False
) -> Iterator[tuple[Place, str]]:
    """Yield the lines of a file, without what ends them unless that is kept; those that are no text are refused."""
    for number, line in enumerate(stream, start=1):
        place = Place(file, number)
        if problem := encoding_problem(line):
            bad_lines.refuse(place, problem, "convert the file to UTF-8")
            if number == 1:
                return  # all of it is so
            continue
        text = line.decode().removeprefix(BOM)
        yield place, text if keep_ends else text.rstrip("\r\n")


def encoding_problem(line: bytes) -> str | None:
    """Return why a line is no text of UTF-8; None where it is."""
    if problem := wide_problem(line):
        return problem
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"has bytes that are not UTF-8 ({error.reason})"
    return None


def wide_problem(line: bytes) -> str | None:
    """Return why a line, or the beginning of one, has units of more than a byte; None where it has none."""
    if line.startswith(WIDE):
        return "is not UTF-8 but UTF-16 or UTF-32"
    return "has a NUL byte, which binary files and UTF-16 have" if b"\0" in line else None
