"""Values of JSON, however they are parted."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.data import BadLines, json_values
from anyorder.data.files import open_bytes
from anyorder.data.json_values import read_json
from anyorder.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(st.text(), VALUES, min_size=1, max_size=3), min_size=1, max_size=5)


def values(path: Path, bad_lines: BadLines | None = None) -> list[tuple[int, Any]]:
    found = read_json(path, lambda: open_bytes(path), bad_lines or BadLines())
    return [(place.line, value) for place, value in found]


def written(records: list[dict[str, Any]], style: str, indent: int | None, ascii: bool) -> str:
    texts = [json.dumps(record, indent=indent, ensure_ascii=ascii) for record in records]
    return {
        "lines": "\n".join(texts),
        "array": json.dumps(records, indent=indent, ensure_ascii=ascii),
        "commas": ",\r\n".join(texts) + "\n",
        "several arrays": "\n".join(f"[{text}]" for text in texts),
    }[style]


@given(
    records=RECORDS, style=st.sampled_from(["lines", "array", "commas", "several arrays"]),
    indent=st.sampled_from([None, 0, 2]), ascii=st.booleans(), piece=st.integers(1, 40),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_every_style_gives_the_values(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], style: str, indent: int | None,
    ascii: bool, piece: int,
) -> None:  # fmt: skip
    if any("role" in record or "from" in record for record in records):
        return  # messages are another matter
    path = tmp_path_factory.getbasetemp() / "a.json"
    path.write_text(
        text := written(records, style, indent, ascii), encoding="utf-8", errors="surrogatepass", newline=""
    )
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    usual, json_values.PIECE = json_values.PIECE, piece
    try:
        found = values(path)
    finally:
        json_values.PIECE = usual
    assert [value for _, value in found] == records
    lines = text.split("\n")
    assert all(lines[line - 1].strip().startswith(("{", "[")) for line, _ in found)


def test_lines_are_counted_over_pieces(tmp_path: Path) -> None:
    records = [{"text": "x\n" * 1000, "at": number} for number in range(200)]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    assert (tmp_path / "a.json").stat().st_size > 4 * json_values.PIECE
    assert values(tmp_path / "a.json") == [(2 + 4 * number, record) for number, record in enumerate(records)]


@pytest.mark.parametrize(
    "text",
    ['[{"role": "user", "content": "a"}]', '[{"role": "user", "content": "a"}]\n' * 2,
     '[\n {"role": "user",\n "content": "a"}\n]', '[[{"role": "user", "content": "a"}]]'],
)  # fmt: skip
def test_a_list_of_messages_is_one_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    found = [value for _, value in values(tmp_path / "a.jsonl")]
    assert found == [[{"role": "user", "content": "a"}]] * len(found)
    assert len(found) == (2 if text.endswith("\n") else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"text": "a"},\n{"text": "b"',
            "line 2: is not JSON from here on (Expecting ',' delimiter, column 13): mend",
        ),
        ('[{"text": "a"},\n', "line 2: ends before its list does: fetch or export it again"),
        ('[{"text": "a"},\n{"text": "b}]', "line 2: is not JSON from here on (Unterminated string"),
        ('[{"text": "a"},\n {"text": "a", "text": "b"}]', "line 2: is not JSON from here on (an object has the field"),
        ('[{"text": "a"},\n {"n": ' + "1" * 5000 + "}]", "line 2: is not JSON from here on (a number has thousands of"),
        ('[{"text": "a"},\n {"n": ' + "[" * 100_000, "line 2: is not JSON from here on (it is nested too deeply)"),
        ('[{"text":\n"\xff"}]', "line 2: has bytes that are not UTF-8"),
    ],
)
def test_what_goes_wrong_in_arrays(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        values(tmp_path / "a.json")
    assert message in str(error.value)


def test_a_bad_line_costs_itself_alone_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n{"text": \n{"text": "b"}\n')
        bad_lines = BadLines(skip=True)
        assert values(tmp_path / name, bad_lines) == [(1, {"text": "a"}), (3, {"text": "b"})]
        assert len(bad_lines.found) == 1


def test_numbers_that_are_none_are_read_where_nobody_needs_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": NaN}\n')
    [(_, value)] = values(tmp_path / "a.jsonl")
    assert math.isnan(value["score"])


def test_no_more_is_held_than_a_record(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("w") as file:
        file.write("[\n")
        file.writelines(json.dumps({"text": "x" * 1000}, indent=1) + ",\n" for _ in range(20_000))
        file.write("]\n")
    tracemalloc.start()
    try:
        found = read_json(tmp_path / "a.json", lambda: open_bytes(tmp_path / "a.json"), BadLines())
        count = sum(1 for _ in found)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_000_000
