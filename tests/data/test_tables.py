"""Tables: CSV, TSV, Parquet, Arrow."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.data import BadLines, read_records
from anyorder.data.records import Document
from anyorder.errors import UserError
from tests.data.test_readers import said

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)


@given(rows=st.lists(st.tuples(CELL.filter(str.strip), CELL.filter(str.strip)), min_size=1, max_size=5))
@settings(deadline=None)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_cells_are_read_as_they_are_written(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"a{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
        writer.writerows([("question", "answer"), *rows])
    assert [said(record) for record in read_records(path)] == [[("user", q), ("assistant", a)] for q, a in rows]


def test_what_datasets_writes_as_csv(tmp_path: Path) -> None:
    rows = {"text": ["a, b", 'c "d"\ne', "é" * 200_000], "id": [1, 2, 3]}
    datasets.Dataset.from_dict(rows).to_csv(str(tmp_path / "a.csv"))
    records = [record for record in read_records(tmp_path / "a.csv") if isinstance(record, Document)]
    assert [record.text for record in records] == rows["text"]
    assert [record.place.line for record in records] == [2, 3, 5]


def test_numbers_in_csv_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf,input,output\r\n0,0010,0100\r\n\r\n")  # as pandas numbers rows
    [record] = read_records(tmp_path / "a.csv")
    assert said(record) == [("user", "0010"), ("assistant", "0100")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,id\na\n", "line 2: has 1 cells, and the first row 2: quote cells that hold the delimiter"),
        ("text,text\na,b\n", "line 1: names two columns 'text': give each a name of its own"),
        ('text\na\n"b\nc\n', "line 3: is not CSV from here on (unexpected end of data): export it again"),
        ("a;text\n1;b\n", "line 2: lacks the fields that say what it is (it has `a;text`)"),
        ("text\n\xff\n", "line 2: has bytes that are not UTF-8"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        list(read_records(tmp_path / "a.csv"))
    assert message in str(error.value)


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def feather(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow.feather

    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), str(path))


def stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


WRITERS = {"a.parquet": parquet, "a.feather": feather, "a.arrow": stream}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_of_tables(tmp_path: Path, name: str) -> None:
    rows = [{"question": f"q{number}", "answer": "a", "context": "c" if number else None} for number in range(700)]
    rows[3] = {"question": None, "answer": "a", "context": None}
    WRITERS[name](tmp_path / name, rows)
    bad_lines = BadLines(skip=True)
    records = list(read_records(tmp_path / name, bad_lines))
    assert [said(record)[0][1] for record in records] == [
        f"c\nq{number}" if number else "q0" for number in range(700) if number != 3
    ]
    assert str(records[-1].place) == f"{str(tmp_path / name)!r}, row 700"
    assert bad_lines.found[0].startswith(f"{str(tmp_path / name)!r}, row 4: ")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("data", [b"PAR1", b"something else, and longer than any header is"])
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read from here on .*: fetch or export the file again"):
        list(read_records(tmp_path / name))


def test_mixed_values_that_datasets_keeps_as_json(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": "s"}}]
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in calls
    ]
    datasets.Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(str(tmp_path / "a.parquet"))
    contents = [said(record)[1][1] for record in read_records(tmp_path / "a.parquet")]
    assert ['{"x": 1}' in contents[0], '{"x": "s"}' in contents[1]] == [True, True]


def test_a_table_in_a_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(b"anything")
    with pytest.raises(UserError, match="is a table in a compressed file: unpack it"):
        list(read_records(tmp_path / "a.parquet.gz"))
