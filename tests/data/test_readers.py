"""From files to records, and what is told of lines that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyorder.data import BadLines, read_records
from anyorder.data.files import files_of
from anyorder.data.records import Dialogue, Document, TokenIds
from anyorder.errors import UserError


def write(path: Path, *lines: object) -> Path:
    """A file of JSON lines; what is text already is written as it is."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def only(path: Path, line: object) -> object:
    [record] = read_records(write(path / "one.jsonl", line))
    return record


def said(record: object) -> list[tuple[str, str]]:
    assert isinstance(record, Dialogue)
    return [(message.role, message.content) for message in record.messages]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# ---- forms -----------------------------------------------------------------------------------------


def test_token_ids(tmp_path: Path) -> None:
    record = only(tmp_path, {"input_ids": [3, 1, 2], "prompt_length": 2, "text": "not read"})
    assert isinstance(record, TokenIds)
    assert (record.ids, record.prompt_length) == ((3, 1, 2), 2)
    without = only(tmp_path, {"input_ids": [3]})
    assert isinstance(without, TokenIds)
    assert without.prompt_length is None


def test_text(tmp_path: Path) -> None:
    record = only(tmp_path, {"text": " a\n", "url": "elsewhere"})
    assert isinstance(record, Document)
    assert (record.text, record.form, record.place.line) == (" a\n", "text", 1)


@pytest.mark.parametrize("names", [("prompt", "response"), ("prompt", "completion"), ("question", "answer")])
def test_prompt_and_response(tmp_path: Path, names: tuple[str, str]) -> None:
    assert said(only(tmp_path, dict(zip(names, "ab", strict=True)))) == [("user", "a"), ("assistant", "b")]


def test_messages(tmp_path: Path) -> None:
    system = {"role": "developer", "content": "be brief"}
    record = only(tmp_path, {"messages": [system, user("a"), assistant("b"), user("c"), assistant("d")]})
    assert said(record) == [
        ("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
    ]  # fmt: skip


def test_calls_of_tools_in_messages_are_what_the_assistant_writes(tmp_path: Path) -> None:
    call = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
    result = {"role": "tool", "content": "3"}
    asks = {"role": "assistant", "content": None, "tool_calls": call}
    record = only(tmp_path, {"messages": [user("1+2"), asks, result, assistant("3")]})
    assert said(record) == [("user", "1+2"), ("assistant", json.dumps(call)), ("tool", "3"), ("assistant", "3")]


@pytest.mark.parametrize(("human", "gpt"), [("human", "gpt"), ("user", "assistant")])
def test_sharegpt(tmp_path: Path, human: str, gpt: str) -> None:
    turns = [{"from": human, "value": "a"}, {"from": gpt, "value": "b"}]
    record = only(tmp_path, {"system": "s", "conversations": turns})
    assert said(record) == [("system", "s"), ("user", "a"), ("assistant", "b")]


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": "call"},
        {"from": "observation", "value": "result"},
        {"from": "gpt", "value": "b"},
    ]
    record = only(tmp_path, {"conversations": turns, "tools": '[{"name": "add"}]'})
    assert said(record) == [("user", "a"), ("assistant", "call"), ("tool", "result"), ("assistant", "b")]
    assert isinstance(record, Dialogue)
    assert record.tools == ({"type": "function", "function": {"name": "add"}},)


def test_what_has_no_question_or_no_answer_is_no_part_of_a_dialogue(tmp_path: Path) -> None:
    system = {"role": "system", "content": "s"}
    record = only(tmp_path, {"messages": [system, assistant("?"), user("a"), assistant("b"), user("c")]})
    assert said(record) == [("system", "s"), ("user", "a"), ("assistant", "b")]


def test_alpaca(tmp_path: Path) -> None:
    fields = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "s", "history": [["a", "b"]]}
    assert said(only(tmp_path, fields)) == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "Add.\n1 2"), ("assistant", "3"),
    ]  # fmt: skip
    assert said(only(tmp_path, {"instruction": "Add.", "output": "3"}))[0] == ("user", "Add.")
    assert said(only(tmp_path, {"input": "1 2", "output": "3"}))[0] == ("user", "1 2")


# ---- files -----------------------------------------------------------------------------------------


def texts(path: Path, **options: object) -> list[tuple[int, str]]:
    records = list(read_records(path, **options))
    assert all(isinstance(record, Document) for record in records)
    return [(record.place.line, record.text) for record in records if isinstance(record, Document)]


def test_lines_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "1"}\r\n\n  {"text": "\xc3\xa9"}')
    assert texts(path) == [(1, "1"), (3, "é")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[\n {"text": "a"},\n {"text":\n  "b"}\n]\n', [(2, "a"), (3, "b")]),
        ('{"text": "a"}', [(1, "a")]),
        ('{"text": "a"}\n{"text": "b"}\n', [(1, "a"), (2, "b")]),  # lines, whatever the file is called
    ],
)
def test_json(tmp_path: Path, text: str, expected: list[tuple[int, str]]) -> None:
    (tmp_path / "a.json").write_text(text)
    assert texts(tmp_path / "a.json") == expected


PLAIN = "\n  one\ntwo\n\n \nthree\x85still\n<|endoftext|>\nfour\n\n"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [(2, "  one\ntwo\n\n \nthree\x85still"), (8, "four")]),
        ("paragraphs", [(2, "  one\ntwo"), (6, "three\x85still"), (8, "four")]),
        ("lines", [(2, "  one"), (3, "two"), (6, "three\x85still"), (8, "four")]),
    ],
)
def test_documents_of_plain_text(tmp_path: Path, documents: str, expected: list[tuple[int, str]]) -> None:
    (tmp_path / "a.txt").write_bytes(PLAIN.encode())
    assert texts(tmp_path / "a.txt", documents=documents) == expected
    (tmp_path / "a.txt").write_bytes(PLAIN.encode().replace(b"\n", b"\r\n"))
    assert texts(tmp_path / "a.txt", documents=documents) == expected


def test_files_of_a_folder_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b/1.txt", "a.TXT", "c.jsonl", "LICENSE", "picture.png", ".hidden/d.txt", ".e.txt"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert [str(path.relative_to(tmp_path)) for path in files_of(tmp_path)] == ["a.TXT", "b/1.txt", "c.jsonl"]
    assert len(list(read_records(tmp_path))) == 3


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem", "remedy"),
    [
        ('{"text": ', "is not JSON (Expecting value, column 10)", "write one JSON object per line"),
        ('{"text": ' + "[" * 100_000, "is not JSON (it is nested too deeply)", "write one JSON object per line"),
        ("[" * 100_000, "is not JSON (it is nested too deeply)", "write one JSON object per line"),
        ('{"text": ' + "1" * 5000 + "}", "is not JSON (a number has thousands of digits)", "write one JSON object"),
        ('{"text": "a", "text": "b"}', "is not JSON (an object has the field 'text' twice)", "write one JSON object"),
        ('{"text": NaN}', "`text` is nan", "give text, in quotes"),
        ('{"\\ud800": "a"}', "(it has `\\ud800`)", "give one of"),
        ({"data": [{"text": "a"}]}, "(it has `data`)", "if `data` holds the records, write that list alone into"),
        ("3", "holds 3, not a JSON object", 'write one like {"text": "..."}'),
        ({"txt": "a"}, "lacks the fields that say what it is (it has `txt`)", "give one of `input_ids`; `messages`;"),
        ({}, "lacks the fields that say what it is (it has none)", "give one of"),
        ({"prompt": "a"}, "(it has `prompt`)", "`question` and `answer`"),
        ({"text": 3}, "`text` is 3", "give text, in quotes"),
        ({"text": ""}, "`text` is empty", "write something there"),
        ('{"text": "\\ud800"}', "`text` has half a character", "write the text anew as UTF-8"),
        ({"prompt": "a", "response": None}, "`response` is None", "give text, in quotes"),
        ({"input_ids": []}, "`input_ids` is []", "give a list of whole numbers, at least one"),
        ({"input_ids": [1, True]}, "`input_ids` is [1, True]", "give a list of whole numbers"),
        ({"input_ids": [1, 2], "prompt_length": 2}, "`prompt_length` is 2 and there are 2 tokens", "the number of"),
        ({"input_ids": [1, 2], "prompt_length": "1"}, "`prompt_length` is '1'", "give the number of tokens before"),
        ({"messages": {}}, "`messages` is {}", "give a list of JSON objects, at least two"),
        ({"messages": [user("a")]}, "has no question that the assistant answers", "add the answer"),
        ({"messages": [assistant("a")]}, "has no question that the assistant answers", "add the answer"),
        ({"messages": [user("a"), assistant(" ")]}, "has an empty answer", "write the answer"),
        ({"messages": [{"role": "me", "content": "a"}]}, "`role` of message 0 is 'me'", "give one of system, user"),
        ({"messages": [user([])]}, "`content` of message 0 is []", "give text, in quotes"),
        ({"conversations": [{"value": "a"}]}, "`role` of message 0 is None", "give one of system, user"),
        ({"conversations": [{"from": "gpt"}]}, "`content` of message 0 is None", "give text"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "{"},
         "`tools` is not JSON", "mend it"),
        ({"instruction": "", "output": "a"}, "`instruction` is empty", "write the question"),
        ({"instruction": "", "input": "", "output": "a"}, "`instruction` and `input` are empty", "write the question"),
        ({"instruction": "a", "output": ""}, "`output` is empty", "write something there"),
        ({"instruction": "a", "output": "b", "history": 5}, "`history` is 5", "give a list of pairs"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "`history` has 'c'", "give pairs of an instruction"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used(tmp_path: Path, line: object, problem: str, remedy: str) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "good"}, line)
    with pytest.raises(UserError) as error:
        list(read_records(path, BadLines()))
    message = str(error.value)
    assert message.startswith(f"{str(path)!r}, line 2: ")
    assert problem in message
    assert remedy in message
    assert "or leave such lines out (skip_bad_lines)" in message
    bad_lines = BadLines(skip=True)
    assert len(list(read_records(path, bad_lines))) == 1
    [found] = bad_lines.found
    assert problem in found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: has bytes that are not UTF-8 (invalid start byte)"),
        ("a.txt", b"a\n\xff\n", "line 2: has bytes that are not UTF-8 (invalid start byte): convert the file to UTF-8"),
        ("a.json", b'[{"text":\n"\xff"}]', "line 2: has bytes that are not UTF-8"),
        (
            "a.json",
            b'[{"text": "a"},\n{"text": "b"',
            "line 2: is not JSON from here on (Expecting ',' delimiter, column 13): mend",
        ),
        ("a.json", b'[{"text": "a"},\n', "line 2: ends before its list does: fetch or export it again"),
        ("a.json", b"", "line 1: the file is empty: write something into it"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_records(tmp_path / name))
    assert message in str(error.value)


def test_lines_left_out_are_counted_and_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *["{"] * 7, {"text": "good"})
    bad_lines = BadLines(skip=True)
    assert texts(path, bad_lines=bad_lines) == [(8, "good")]
    summary = bad_lines.summary().splitlines()
    assert summary[0] == "7 lines left out"
    assert summary[5].startswith(f"  {str(path)!r}, line 5: is not JSON")
    assert summary[6:] == ["  ..."]


def test_places_without_data(tmp_path: Path) -> None:
    def message(path: Path, **options: object) -> str:
        with pytest.raises(UserError) as error:
            list(read_records(path, **options))
        return str(error.value)

    assert f"folder {str(tmp_path)!r} has no data: put files into it that end in .jsonl, .ndjson, .json, .txt" in (
        message(tmp_path)
    )
    assert "cannot be read (File name too long): check the path." in message(tmp_path / ("a" * 5000))
    assert "is no file or folder here" in message(Path("a\0b"))
    assert "is no file or folder here: check the path." in message(tmp_path / "nothing")
    (tmp_path / "a.png").touch()
    assert "is of no kind that is known: give a file that ends in .jsonl" in message(tmp_path / "a.png")
    blank = write(tmp_path / "blank.jsonl", "", "")
    assert message(blank) == f"data {str(blank)!r} has no record: write something into it."
    bad = write(tmp_path / "bad.jsonl", "{")
    assert "has no record: all of it was left out, first" in message(bad, bad_lines=BadLines(skip=True))
    assert message(bad, documents="pages") == "documents is 'pages': give one of file, paragraphs, lines."


# ---- real data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "count", "skipped"),
    [
        ("sharegpt/dummy_conversation.json", "ShareGPT", 500, 0),
        ("llamafactory_demo/glaive_toolcall_en_demo.json", "ShareGPT", 300, 0),
        ("llamafactory_demo/dpo_en_demo.json", "ShareGPT", 300, 0),
        ("llamafactory_demo/identity.json", "Alpaca", 91, 0),
        ("llamafactory_demo/alpaca_en_demo.json", "Alpaca", 999, 0),
        ("llamafactory_demo/c4_demo.jsonl", "text", 300, 0),
        ("gsm8k", "prompt and response", 7473, 0),  # without the test split
        ("planning/sudoku_4x4_4.jsonl", "prompt and response", 108, 0),
        ("wikitext-2", "plain text", 2, 0),
    ],
)
def test_public_data(shared_data: Path, name: str, form: str, count: int, skipped: int) -> None:
    bad_lines = BadLines(skip=True)
    records = list(read_records(shared_data / name, bad_lines))
    assert {record.form for record in records} == {form}
    assert (len(records), len(bad_lines.found)) == (count, skipped)
