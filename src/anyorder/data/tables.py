"""Rows of tables as objects: CSV and TSV, and Arrow's files and Parquet, a batch at a time."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from anyorder.data.files import import_arrow
from anyorder.data.lines import lines
from anyorder.data.records import BadLines, Place

BATCH = 256
"""Rows that are turned into objects at a time."""


def read_sheet(file: Path, stream: IO[bytes], bad_lines: BadLines, delimiter: str) -> Iterator[tuple[Place, Any]]:
    """Yield the rows of CSV or TSV, whose first row names the columns; each value is text, exactly as it is written.

    Args:
        file: what to call it.
        stream: what is in it.
        bad_lines: what happens to rows that cannot be read.
        delimiter: what parts the cells.
    """
    csv.field_size_limit(max(csv.field_size_limit(), sys.maxsize >> 32))
    texts = (text for _, text in lines(file, stream, bad_lines, keep_ends=True))
    rows = csv.reader(texts, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        place = Place(file, rows.line_num + 1)
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            bad_lines.refuse(place, f"is not {_kind(delimiter)} from here on ({error})", "export it again")
            return
        if not row:
            continue
        if not header:
            header = row
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                bad_lines.refuse(place, f"names two columns {twice[:40]!r}", "give each a name of its own")
                return
        elif len(row) != len(header):
            bad_lines.refuse(
                place, f"has {len(row)} cells, and the first row {len(header)}", "quote cells that hold the delimiter"
            )
        else:
            yield place, dict(zip(header, row, strict=True))


def _kind(delimiter: str) -> str:
    return "CSV" if delimiter == "," else "TSV"


def read_table(file: Path) -> Iterator[tuple[Place, Any]]:
    """Yield the rows of a file of Parquet or Arrow (of either kind), with the number of each.

    Raises:
        OSError, ValueError: it is damaged, or something else.
    """
    pa = import_arrow("tables")
    number = 0
    for batch in _batches(file, pa):
        nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
        for begin in range(0, batch.num_rows, BATCH):
            for row in batch.slice(begin, BATCH).to_pylist():
                number += 1
                # All rows have all fields of nested objects, those that an object lacks as null.
                yield Place(file, number, "row"), row | {name: _without_null(row[name]) for name in nested}


def _batches(file: Path, pa: Any) -> Iterator[Any]:
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=BATCH)
        return
    import pyarrow.ipc

    with pa.memory_map(str(file)) as source:
        try:
            reader = pyarrow.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)
        else:
            yield from map(reader.get_batch, range(reader.num_record_batches))


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(item) for name, item in value.items() if item is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [_without_null(item) for item in value]
    return value
