"""From files to records, one record at a time."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from anyorder.data.dataset_info import names_of
from anyorder.data.fields import BadRecordError
from anyorder.data.files import COMPRESSED, JSON, SHEETS, TABLES, TEXT, find, is_lfs_pointer, kind_of, open_bytes
from anyorder.data.forms import record_of
from anyorder.data.json_values import read_json
from anyorder.data.lines import lines
from anyorder.data.records import BadLines, Dialogue, Document, Place, Record, TokenIds
from anyorder.data.tables import read_sheet, read_table
from anyorder.data.tokenizer import END_OF_TEXT
from anyorder.errors import UserError

Documents = Literal["file", "paragraphs", "lines"]
"""What is one document of a plain text: the file, what is between blank lines, or a line."""


def read_records(
    source: str | Path, bad_lines: BadLines | None = None, *, documents: Documents = "file"
) -> Iterator[Record]:
    """Yield the records of a file or folder, in order of name and line, holding a record or a batch of rows at a time.

    Args:
        source: file, or folder that is searched for files; see `anyorder.data.files.find`.
        bad_lines: what happens to lines that cannot be used; the first one raises unless given.
        documents: of plain text. Lines that hold nothing but <|endoftext|> part documents in any case.

    Raises:
        UserError: there is no data, or a line cannot be used; it names file, line and remedy.
    """
    if documents not in get_args(Documents):
        raise UserError(f"documents is {documents!r}: give one of {', '.join(get_args(Documents))}.")
    bad_lines = BadLines(may_skip=False) if bad_lines is None else bad_lines
    found = find(source)
    bad_lines.passed_over += found.passed_over
    before = len(bad_lines.found)
    any_record = False
    for file in found.files:
        for record in _read_file(file, bad_lines, documents):
            any_record = True
            yield record
    if not any_record:
        left_out = bad_lines.found[before:]
        remedy = f"all of it was left out, first {left_out[0]}" if left_out else "write something into it."
        raise UserError(f"data {str(source)!r} has no record: {remedy}")


def read_texts(
    source: str | Path, bad_lines: BadLines | None = None, *, documents: Documents = "file"
) -> Iterator[str]:  # fmt: skip
    """Yield texts, and each message of dialogues, for training a tokenizer; the arguments are as above.

    Raises:
        UserError: there are no data, or a line cannot be used or holds token ids.
    """
    bad_lines = BadLines(may_skip=False) if bad_lines is None else bad_lines
    for record in read_records(source, bad_lines, documents=documents):
        match record:
            case Document():
                yield record.text
            case Dialogue():
                yield from (message.content for message in record.messages)
            case TokenIds():
                bad_lines.refuse(record.place, "is token ids", "give texts")


def _read_file(file: Path, bad_lines: BadLines, documents: Documents) -> Iterator[Record]:
    place = Place(file, 1)
    try:
        if file.stat().st_size == 0:
            bad_lines.refuse(place, "the file is empty", "write something into it")
            return
        if is_lfs_pointer(file):
            bad_lines.refuse(place, "the file is a pointer of Git LFS, not the data", "fetch it by `git lfs pull`")
            return
        if kind_of(file) in TEXT:
            yield from _read_text(file, bad_lines, documents)
            return
        names = names_of(file)
        for place, value in _values(file, bad_lines):
            try:
                record = record_of(value if names is None else names.apply(value), place, bad_lines.unread)
            except BadRecordError as error:
                bad_lines.refuse(place, error.problem, error.remedy)
            else:
                yield record
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        # From here on or before: what unpacks files reads ahead.
        reason = (getattr(error, "strerror", None) or " ".join(str(error).split()))[:200]
        bad_lines.refuse(place, f"cannot be read from here on ({reason})", "fetch or export the file again")


def _values(file: Path, bad_lines: BadLines) -> Iterator[tuple[Place, Any]]:
    kind = kind_of(file)
    if kind in JSON:
        yield from read_json(file, partial(open_bytes, file), bad_lines)
    elif kind in SHEETS:
        with open_bytes(file) as stream:
            yield from read_sheet(file, stream, bad_lines, "," if kind == ".csv" else "\t")
    else:
        assert kind in TABLES
        if file.suffix.lower() in COMPRESSED:
            bad_lines.refuse(
                Place(file, 1), "is a table in a compressed file", "unpack it: tables are compressed inside"
            )
            return
        yield from read_table(file)


def _read_text(file: Path, bad_lines: BadLines, documents: Documents) -> Iterator[Document]:
    """Yield documents that are not blank, without blank lines around them."""
    held: list[str] = []
    begin = Place(file, 1)
    with open_bytes(file) as stream:
        for place, line in chain(lines(file, stream, bad_lines), [(begin, END_OF_TEXT)]):
            bare = line.strip()
            ends = bare == END_OF_TEXT or (documents == "paragraphs" and not bare)
            if not ends and (held or bare):
                begin = begin if held else place
                held.append(line)
            if held and (ends or documents == "lines"):
                yield Document(place=begin, form="plain text", text="\n".join(held).rstrip("\n"))
                held = []
