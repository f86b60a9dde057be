"""Dialogues of other forms as lines of `messages`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyorder.data import DataConfig, convert_alpaca, convert_dialogues, convert_sharegpt, prepare, read_records
from anyorder.data.records import Dialogue
from anyorder.errors import UserError
from tests.data import tokenizers
from tests.data.test_readers import assistant, user, write


def test_sharegpt(tmp_path: Path) -> None:
    turns = [
        {"from": "gpt", "value": "?"},
        {"from": "human", "value": "é"},
        {"from": "function_call", "value": "call"},
        {"from": "observation", "value": "result"},
        {"from": "gpt", "value": "b"},
    ]
    source = write(tmp_path / "a.json", {"system": "s", "conversations": turns, "tools": '[{"name": "add"}]'})
    assert convert_sharegpt(source, tmp_path / "b.jsonl").dialogues == 1
    [line] = (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "messages": [
            {"role": "system", "content": "s"},
            user("é"),
            assistant("call"),
            {"role": "tool", "content": "result"},
            assistant("b"),
        ],
        "tools": [{"type": "function", "function": {"name": "add"}}],
    }
    assert "é" in line  # to be read by people


def test_alpaca(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"instruction": "Add.", "input": "1 2", "output": "3"})
    convert_alpaca(source, tmp_path / "b.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == {"messages": [user("Add.\n1 2"), assistant("3")]}


def test_lines_left_out(tmp_path: Path) -> None:
    good, other = {"instruction": "a", "output": "b"}, {"prompt": "a", "response": "b"}
    source = write(tmp_path / "a.jsonl", "{", good, {"text": "c"}, other)
    result = convert_alpaca(source, tmp_path / "b.jsonl", skip_bad_lines=True)
    assert result.dialogues == 1
    assert ["is not JSON" in result.left_out[0], "is no dialogue but text" in result.left_out[1]] == [True, True]
    assert "line 4: is of the form prompt and response, not Alpaca" in result.left_out[2]
    assert convert_dialogues(source, tmp_path / "c.jsonl", skip_bad_lines=True).dialogues == 2


@pytest.mark.parametrize(
    ("lines", "target", "message"),
    [
        (["{"], "b.jsonl", "line 1: is not JSON"),
        ([{"prompt": "a", "response": "b"}], "b.jsonl", "is of the form prompt and response, not ShareGPT: name its"),
        ([{"prompt": "a", "response": "b"}], "b.json", "is of another kind: give a new file whose name ends in .jsonl"),
        ([{"prompt": "a", "response": "b"}], "a.jsonl", "is there already: give a new name, or delete it first."),
    ],
)
def test_mistakes_leave_nothing(tmp_path: Path, lines: list[object], target: str, message: str) -> None:
    source = write(tmp_path / "a.jsonl", *lines)
    before = source.read_bytes()
    with pytest.raises(UserError) as error:
        convert_sharegpt(source, tmp_path / target)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert source.read_bytes() == before


def test_nothing_to_convert(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(UserError, match="have no dialogue that can be used; 1 line left out"):
        convert_dialogues(source, tmp_path / "b.jsonl", skip_bad_lines=True)
    assert not (tmp_path / "b.jsonl").exists()


@pytest.mark.parametrize(
    "name",
    [
        "sharegpt/dummy_conversation.json",
        "llamafactory_demo/alpaca_en_demo.json",
        "llamafactory_demo/glaive_toolcall_en_demo.json",
        "gsm8k/test.jsonl",
    ],
)
def test_what_was_converted_trains_as_its_source_does(shared_data: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "messages.jsonl"
    convert_dialogues(shared_data / name, target)
    before, after = (
        [(one.messages, one.tools) for one in read_records(path) if isinstance(one, Dialogue)]
        for path in (shared_data / name, target)
    )
    assert before == after
    if "sharegpt" in name:
        rows = [
            prepare(path, tokenizers.stories(shared_data), DataConfig(length=512, kind="sft"), cache_dir=tmp_path)[:]
            for path in (shared_data / name, target)
        ]
        assert rows[0] == rows[1]
