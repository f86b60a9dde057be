"""From files to records: JSONL, JSON and plain text, one record at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from anyorder.data.forms import BadRecordError, record_of
from anyorder.data.records import BadLines, Dialogue, Document, Place, Record, TokenIds
from anyorder.data.tokenizer import END_OF_TEXT
from anyorder.errors import UserError

JSON_LINES, JSON, TEXT = (".jsonl", ".ndjson"), (".json",), (".txt", ".text", ".md")
SUFFIXES = (*JSON_LINES, *JSON, *TEXT)

Documents = Literal["file", "paragraphs", "lines"]
"""What is one document of a plain text: the file, what stands between blank lines, or a line."""


def files_of(source: str | Path) -> list[Path]:
    """The file, or the files of a folder and the folders within it, that can be read, in order of name.

    Hidden files and those with other endings (licences, pictures) are none of them.

    Raises:
        UserError: there are none.
    """
    path = Path(source)
    endings = ", ".join(SUFFIXES)
    if path.is_dir():
        names = (file.relative_to(path).parts for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        files = [path.joinpath(*parts) for parts in sorted(names) if not any(part.startswith(".") for part in parts)]
        files = [file for file in files if file.is_file()]
        if not files:
            raise UserError(f"folder {str(path)!r} has no data: put files into it that end in {endings}.")
        return files
    if not path.exists():
        raise UserError(f"data {str(path)!r} is no file or folder here: check the path.")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"data {str(path)!r} is of no kind that is known: give a file that ends in {endings}.")
    return [path]


def read_records(
    source: str | Path, bad_lines: BadLines | None = None, *, documents: Documents = "file"
) -> Iterator[Record]:
    """The records of a file or folder, in order of name and line. Of JSONL and text no more is held than a record.

    Args:
        source: file, or folder that is searched for files.
        bad_lines: what happens to lines that cannot be used; the first one raises unless given.
        documents: of plain text. Lines that hold nothing but <|endoftext|> part documents in any case.

    Raises:
        UserError: there is no data, or a line cannot be used; it names file, line and remedy.
    """
    if documents not in get_args(Documents):
        raise UserError(f"documents is {documents!r}: give one of {', '.join(get_args(Documents))}.")
    bad_lines = BadLines() if bad_lines is None else bad_lines
    files = files_of(source)
    found = len(bad_lines.found)
    any_record = False
    for file in files:
        for record in _read_file(file, bad_lines, documents):
            any_record = True
            yield record
    if not any_record:
        left_out = bad_lines.found[found:]
        remedy = f"all of it was left out, first {left_out[0]}" if left_out else "write something into it."
        raise UserError(f"data {str(source)!r} has no record: {remedy}")


def read_texts(
    source: str | Path, bad_lines: BadLines | None = None, *, documents: Documents = "file"
) -> Iterator[str]:  # fmt: skip
    """What records say, for training a tokenizer: texts, and each message of dialogues; the arguments are as above.

    Raises:
        UserError: there are no data, or a line cannot be used or holds token ids.
    """
    bad_lines = BadLines() if bad_lines is None else bad_lines
    for record in read_records(source, bad_lines, documents=documents):
        match record:
            case Document():
                yield record.text
            case Dialogue():
                yield from (message.content for message in record.messages)
            case TokenIds():
                bad_lines.refuse(record.place, "is token ids", "give texts")


def _read_file(file: Path, bad_lines: BadLines, documents: Documents) -> Iterator[Record]:
    suffix = file.suffix.lower()
    if file.stat().st_size == 0:
        bad_lines.refuse(Place(file, 1), "the file is empty", "write something into it")
        return
    if suffix in TEXT:
        yield from _read_text(file, bad_lines, documents)
        return
    for place, fields in _json_lines(file, bad_lines) if suffix in JSON_LINES else _json_values(file, bad_lines):
        try:
            record = record_of(fields, place)
        except BadRecordError as error:
            bad_lines.refuse(place, error.problem, error.remedy)
        else:
            yield record


def _lines(file: Path, bad_lines: BadLines) -> Iterator[tuple[Place, str]]:
    """The lines of a file, one at a time, however large it is."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = Place(file, number)
            try:
                # Some programs mark UTF-8 by a character at the beginning of the file.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                _refuse_bytes(place, error, bad_lines)
            else:
                yield place, text


def _refuse_bytes(place: Place, error: UnicodeDecodeError, bad_lines: BadLines) -> None:
    bad_lines.refuse(place, f"has bytes that are not UTF-8 ({error.reason})", "convert the file to UTF-8")


def _json_lines(file: Path, bad_lines: BadLines) -> Iterator[tuple[Place, Any]]:
    for place, text in _lines(file, bad_lines):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad_lines.refuse(place, f"is not JSON ({_reason(error)})", "write one JSON object per line")
        else:
            yield place, fields


def _reason(error: Exception) -> str:
    """Without the line, which would count from where the parser was set on."""
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _json_values(file: Path, bad_lines: BadLines) -> Iterator[tuple[Place, Any]]:
    """The items of an array, or values that stand one behind the other, each with the line it begins in."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse_bytes(Place(file, data.count(b"\n", 0, error.start) + 1), error, bad_lines)
        return
    decoder = json.JSONDecoder()
    array = text.lstrip()[:1] == "["
    # Commas and brackets between items are skipped like spaces: what they part is what matters.
    between = " \t\r\n,[]" if array else " \t\r\n,"
    at, line = 0, 1
    while True:
        begin = at
        while at < len(text) and text[at] in between:
            at += 1
        line += text.count("\n", begin, at)
        if at == len(text):
            if array and text.rstrip()[-1] != "]":
                bad_lines.refuse(Place(file, line), "ends before its list does", "fetch or export it again")
            return
        place = Place(file, line)
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            bad_lines.refuse(place, f"is not JSON from here on ({_reason(error)})", "mend it")
            return
        yield place, value
        line += text.count("\n", at, end)
        at = end


def _read_text(file: Path, bad_lines: BadLines, documents: Documents) -> Iterator[Document]:
    """Documents that are not blank, without blank lines around them."""
    held: list[str] = []
    begin = Place(file, 1)
    for place, line in chain(_lines(file, bad_lines), [(begin, END_OF_TEXT)]):
        bare = line.strip()
        ends = bare == END_OF_TEXT or (documents == "paragraphs" and not bare)
        if not ends and (held or bare):
            begin = begin if held else place
            held.append(line)
        if held and (ends or documents == "lines"):
            yield Document(place=begin, form="plain text", text="\n".join(held).rstrip("\n"))
            held = []
