"""Prepared rows: what is in them, what they are made of, and that they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.data import DataConfig, collate, pack, prepare, report_of
from anyorder.data import preparation as preparation_module
from anyorder.data.encoding import Sample
from anyorder.data.rows import packed, unpacked
from anyorder.errors import UserError
from tests.data import tokenizers
from tests.data.test_readers import assistant, user, write

Prepare = Callable[..., Any]

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(anyorder.__file__).parent.parent)}
"""Of other processes: they import what this one does, wherever they run."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenizers.characters()


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Prepare:
    """`prepare` on lines of JSON, with a cache that is the test's own."""

    def make(*lines: object, length: int = 8, tokenizer: Any = tokenizer, **options: Any) -> Any:
        path = write(tmp_path / "data.jsonl", *lines)
        how = {name: options.pop(name) for name in ("progress", "streaming") if name in options}
        return prepare(path, tokenizer, DataConfig(length=length, **options), cache_dir=tmp_path / "cache", **how)

    return make


def spelt(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids)).replace("</s>", "$")


# ---- rows ------------------------------------------------------------------------------------------


def pack_slowly(documents: list[list[int]], length: int) -> list[tuple[list[int], list[int]]]:
    """Slow twin, token by token."""
    stream = [(token, number) for number, document in enumerate(documents) for token in document]
    rows = []
    for at in range(0, len(stream) - length + 1, length):
        row = stream[at : at + length]
        ranks = {number: rank for rank, number in enumerate(sorted({number for _, number in row}))}
        rows.append(([token for token, _ in row], [ranks[number] for _, number in row]))
    return rows


@given(
    chunks=st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), max_size=4), max_size=6),
    length=st.integers(1, 12),
)
@settings(deadline=None)
def test_packed_rows(chunks: list[list[list[int]]], length: int) -> None:
    samples = [[Sample(np.asarray(ids, np.int32)) for ids in chunk] for chunk in chunks]
    rows = [row for batch in packed(samples, length) for row in batch.to_pylist()]
    expected = pack_slowly([ids for chunk in chunks for ids in chunk], length)
    assert [(row["input_ids"], row["document"]) for row in rows] == expected
    assert [row["sample"] for row in rows] == list(range(len(rows)))


@given(
    chunks=st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), max_size=4), max_size=6),
    length=st.integers(1, 12),
)
@settings(deadline=None)
def test_unpacked_rows(chunks: list[list[list[int]]], length: int) -> None:
    samples = [[Sample(np.asarray(ids, np.int32)) for ids in chunk] for chunk in chunks]
    rows = [row for batch in unpacked(samples, length) for row in batch.to_pylist()]
    joined = [ids for chunk in chunks for ids in chunk]
    assert [row["input_ids"] for row in rows] == [
        ids[at : at + length] for ids in joined for at in range(0, len(ids), length)
    ]
    assert [row["sample"] for row in rows] == list(range(len(rows)))


def test_texts_are_packed(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prepared({"text": "abcd"}, {"text": "ef"}, {"text": "ghijklm"}, {"text": "n"})
    assert [spelt(tokenizer, ids) for ids in rows["input_ids"]] == ["abcd$ef$", "ghijklm$"]
    assert rows["document"][:] == [[0, 0, 0, 0, 0, 1, 1, 1], [0] * 8]
    assert rows["sample"][:] == [0, 1]
    assert report_of(rows).forms == {"text": 4}
    assert (report_of(rows).rows, report_of(rows).tokens) == (2, 18)
    assert report_of(rows).bytes_per_token == 14 / 18


def test_packed_texts_are_those_of_pack(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["one two three", "four", "five six seven"]
    rows = prepared(*({"text": text} for text in texts))
    expected = pack([tokenizer(text)["input_ids"] for text in texts], 8, tokenizer.eos_token_id)
    assert torch.equal(torch.tensor(rows["input_ids"][:]), expected)


def test_texts_of_their_own_rows(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prepared({"text": "abcd"}, {"text": "efghijklm"}, packed=False)
    assert rows.column_names == ["sample", "input_ids"]
    assert [spelt(tokenizer, ids) for ids in rows["input_ids"]] == ["abcd$", "efghijkl", "m$"]


def test_token_ids_stay_as_they_are(prepared: Prepare) -> None:
    lines = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6, 7, 9]}]
    rows = prepared(*lines, tokenizer=None, vocab_size=10)
    assert rows["input_ids"][:] == [[1, 2, 3, 4, 5, 6, 7, 9]]
    assert report_of(rows).bytes_per_token is None


def test_dialogues_are_texts_too(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prepared({"prompt": "a", "response": "b"}, length=64, packed=False)
    assert spelt(tokenizer, rows["input_ids"][0]) == "user:\na\n\nassistant:\nb$"
    assert report_of(rows).bytes_per_token == 25 / 22  # as text, the end token has four bytes


def test_answers(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prepared(
        {"prompt": "a", "response": "bcd"},
        {"messages": [user("a"), assistant("bc"), user("d"), assistant("efg")]},
        kind="sft",
        length=64,
    )
    assert rows.column_names == ["sample", "input_ids", "prompt_length", "turns"]
    answers = [[spelt(tokenizer, row["input_ids"][a:b]) for a, b in row["turns"]] for row in rows]
    assert answers == [["bcd$"], ["bc$", "efg$"]]
    assert [row["turns"][0][0] for row in rows] == rows["prompt_length"][:]
    assert spelt(tokenizer, rows[0]["input_ids"][: rows[0]["prompt_length"]]) == "user:\na\n\nassistant:\n"
    assert all(row["turns"][-1][1] == len(row["input_ids"]) for row in rows)
    assert report_of(rows).bytes_per_token == 8 / 11
    assert report_of(rows).truncated == 0


def test_given_token_ids_with_a_prompt(prepared: Prepare) -> None:
    rows = prepared({"input_ids": [4, 5, 6], "prompt_length": 1}, tokenizer=None, vocab_size=10, kind="sft")
    assert rows[0] == {"sample": 0, "input_ids": [4, 5, 6], "prompt_length": 1, "turns": [[1, 3]]}


def test_answers_that_are_too_long_are_cut(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [user("a"), assistant("bcd"), user("e"), assistant("f")]
    prompt = len("user:\na\n\nassistant:\n")
    for length, answers in ((prompt + 2, ["bc"]), (prompt + 6, ["bcd$"]), (prompt + 99, ["bcd$", "f$"])):
        rows = prepared({"messages": turns}, kind="sft", length=length)
        assert [spelt(tokenizer, rows[0]["input_ids"][a:b]) for a, b in rows[0]["turns"]] == answers
        assert rows[0]["turns"][-1][1] == len(rows[0]["input_ids"])
        assert report_of(rows).truncated == (len(answers) == 1)


def test_an_answer_ends_with_its_end_token(prepared: Prepare) -> None:
    tokenizer = tokenizers.chatty()  # whose template writes a line end behind <|im_end|>
    turns = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    [row] = prepared(turns, kind="sft", length=99, tokenizer=tokenizer, end_token_id=im_end)
    assert [tokenizer.decode(row["input_ids"][a:b]) for a, b in row["turns"]] == ["b<|im_end|>", "d<|im_end|>"]
    [row] = prepared(turns, kind="sft", length=99, tokenizer=tokenizer)  # its own is another one
    answers = [tokenizer.decode(row["input_ids"][a:b]) for a, b in row["turns"]]
    assert answers == ["b<|im_end|>", "d<|im_end|>"]


def test_a_template_may_be_given(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    bare = "{% for message in messages %}{{ message.content }}{% endfor %}"
    [row] = prepared({"prompt": "12", "response": "3"}, kind="sft", template=bare)
    assert (spelt(tokenizer, row["input_ids"]), row["prompt_length"]) == ("123$", 2)


# ---- the cache -------------------------------------------------------------------------------------


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())


def test_prepared_once(prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"text": "abcdefg"}, "{"]
    first = prepared(*lines, skip_bad_lines=True)
    monkeypatch.setattr(preparation_module, "read_records", None)  # it would fail now
    second = prepared(*lines, skip_bad_lines=True)
    assert second[:] == first[:]
    assert report_of(second) == report_of(first)
    assert len(report_of(second).left_out) == 1
    assert len(folders(tmp_path)) == 1


def test_rows_are_mapped_not_loaded(prepared: Prepare) -> None:
    lines = [{"text": "abcdefg"}] * 10_000
    prepared(*lines)
    before = pa.total_allocated_bytes()
    rows = prepared(*lines)
    assert len(rows) == 10_000
    assert pa.total_allocated_bytes() - before < 10_000  # of about 700,000
    assert len(rows.cache_files) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"length": 4}, {"packed": False}, {"end_token_id": 0}, {"mask_token_ids": [3]}, {"vocab_size": 200},
        {"skip_bad_lines": True}, {"documents": "lines"}, {"template": "{{ messages[-1].content }}"},
        {"tokenizer": tokenizers.chatty()},
    ],
)  # fmt: skip
def test_whatever_decides_makes_new_rows(prepared: Prepare, tmp_path: Path, change: dict[str, Any]) -> None:
    line = {"text": "abcdefghi" * 9}
    prepared(line)
    prepared(line, **change)
    assert len(folders(tmp_path)) == 2
    prepared(line)
    prepared(line, **change)
    assert len(folders(tmp_path)) == 2


def test_changed_files_make_new_rows(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    prepared({"text": "abcdefg"})
    [row] = prepared({"text": "abcdefh"})
    assert spelt(tokenizer, row["input_ids"]) == "abcdefh$"


def test_what_a_tokenizer_did_before_changes_nothing(prepared: Prepare, tmp_path: Path) -> None:
    tokenizer = tokenizers.characters()
    tokenizer.pad_token = "<pad>"
    prepared({"text": "abcdefg"}, tokenizer=tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    prepared({"text": "abcdefg"}, tokenizer=tokenizer)
    assert len(folders(tmp_path)) == 1


def test_a_report_survives_shuffling_and_needs_a_prepared_dataset(prepared: Prepare) -> None:
    rows = prepared(*[{"text": "abcdefg"}] * 5)
    assert report_of(rows.shuffle(seed=1).select(range(2))).rows == 5
    assert sorted(rows.shuffle(seed=1)["sample"]) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"has no report: make it with anyorder\.data\.prepare\."):
        report_of(datasets.Dataset.from_dict({"input_ids": [[1]]}))


def test_a_full_disk_leaves_nothing(prepared: Prepare, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [{"input_ids": rng.integers(0, 99, 4000).tolist()} for _ in range(40)]
    prepared(*lines[:1], tokenizer=None, vocab_size=99)  # writes the lines, and makes the cache
    before = sorted((tmp_path / "cache").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(tmp_path / "data.jsonl", *lines)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may become larger
    try:
        with pytest.raises(UserError, match=r"output .* cannot be written \(.*\): give another place\."):
            prepare(tmp_path / "data.jsonl", None, DataConfig(length=8, vocab_size=99), cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [path for path in sorted((tmp_path / "cache").iterdir()) if path not in before]
    assert [path.suffix for path in left] in ([".lock"], [])


def test_killed_while_preparing(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *[{"input_ids": list(range(99)) * 20}] * 3000)
    config = "DataConfig(length=8, vocab_size=99)"
    code = f"from anyorder.data import *; prepare({str(source)!r}, None, {config}, cache_dir='cache')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT)
    while process.poll() is None and not list((tmp_path / "cache").glob(".*.partial/rows.arrow")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert folders(tmp_path)[0].startswith(".")  # begun
    assert folders(tmp_path)[1:] == []  # not finished
    rows = prepare(source, None, DataConfig(length=8, vocab_size=99), cache_dir=tmp_path / "cache")
    assert len(rows) == 3000 * 99 * 20 // 8


@pytest.mark.slow
def test_several_processes_prepare_once(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *[{"input_ids": list(range(99))}] * 2000)
    config = "DataConfig(length=8, vocab_size=99)"
    code = f"from anyorder.data import *; print(len(prepare({str(source)!r}, None, {config}, cache_dir='cache')))"
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate()[0] for run in runs] == [f"{2000 * 99 // 8}\n"] * 2
    assert len(folders(tmp_path)) == 1


# ---- streaming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"packed": False}, {"kind": "sft", "length": 30}])
def test_streamed_rows_are_the_prepared_ones(prepared: Prepare, options: dict[str, Any]) -> None:
    lines = [{"prompt": "ab" * number, "response": "cd" * number} for number in range(1, 6)]
    kept = list(prepared(*lines, skip_bad_lines=True, **options))
    streamed = prepared(*lines, skip_bad_lines=True, streaming=True, **options)
    assert list(streamed) == kept
    assert list(streamed.skip(2)) == kept[2:]  # goes on where a run was stopped
    assert list(streamed.features) == list(kept[0])


def test_a_stream_goes_on_from_its_state(prepared: Prepare) -> None:
    streamed = prepared(*[{"text": "abcdefghijk"}] * 9, streaming=True)
    whole = list(streamed)
    rows: Iterator[Any] = iter(streamed)
    first = [next(rows) for _ in range(4)]
    state = json.loads(json.dumps(streamed.state_dict()))
    streamed = prepared(*[{"text": "abcdefghijk"}] * 9, streaming=True)
    streamed.load_state_dict(state)
    assert [*first, *streamed] == whole


def test_streamed_mistakes(prepared: Prepare, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="line 2: is not JSON"):
        list(prepared({"text": "abcdefghijkl"}, "{", streaming=True))
    with pytest.raises(UserError, match="is no file or folder here"):
        prepare(tmp_path / "nothing", tokenizer, DataConfig(length=8), streaming=True)


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ({"input_ids": [1, 512]}, {"vocab_size": 512}, "has token 512, and the vocabulary has 512: use the network's"),
        ({"input_ids": [-1]}, {}, "has token -1, and the vocabulary has 100"),
        ({"input_ids": [10**30]}, {}, "has token 1000000000000000000000000000000, and"),
        ({"text": "~\n"}, {"vocab_size": 50}, "has token 99, and the vocabulary has 50"),
        ({"input_ids": [1, 3]}, {"mask_token_ids": [3]}, "has the mask token, 3: take it out: it marks what is"),
        ({"text": "a<mask>"}, {"mask_token_ids": [3]}, "has the mask token, 3"),
        ({"prompt": "a", "response": "<mask>"}, {"mask_token_ids": [3], "kind": "sft"}, "has the mask token, 3"),
        ({"prompt": "a" * 5, "response": "b"}, {"kind": "sft", "length": 24}, "the prompt has 24 tokens and a row 24"),
        ({"input_ids": [1, 2], "prompt_length": 1}, {"kind": "sft", "length": 1}, "the prompt has 1 tokens and a row"),
        ({"text": "a"}, {"kind": "sft"}, "has no answer: give `prompt` and `response`, or `messages`"),
        ({"input_ids": [1]}, {"kind": "sft"}, "has neither `prompt_length` nor `labels`: say how many of its tokens"),
        ({"text": "a"}, {"tokenizer": None, "vocab_size": 9}, "is text, and there is no tokenizer: give the network's"),
        ({"prompt": "a", "response": "b"}, {"tokenizer": None, "vocab_size": 9}, "is text, and there is no tokenizer"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_trained_on(
    prepared: Prepare, tmp_path: Path, line: object, options: dict[str, Any], message: str
) -> None:
    good = {"input_ids": [4, 5, 6], "prompt_length": 0}
    options = {"packed": False} | options
    with pytest.raises(UserError) as error:
        prepared(good, line, **options)
    assert f"{str(tmp_path / 'data.jsonl')!r}, line 2: {message}" in str(error.value)
    assert folders(tmp_path) == []
    rows = prepared(good, line, good, skip_bad_lines=True, **options)
    assert rows["sample"][:] == list(range(len(rows)))
    [left_out] = report_of(rows).left_out
    assert message.partition(":")[0] in left_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dpo"}, "kind is 'dpo': give one of pretrain, sft."),
        ({"length": 0}, "length is 0: give at least 1 token."),
        ({"tokenizer": None}, "tokenizer and vocab_size are None: give one"),
        ({"documents": "pages"}, "documents is 'pages': give one of file, paragraphs, lines."),
        ({"length": 9}, "have 8 tokens: give at least 9, the length of one row, or shorter rows, or packed=False."),
        ({"vocab_size": 5, "skip_bad_lines": True}, "have no line that can be used; 1 line left out"),
    ],
)
def test_mistakes(prepared: Prepare, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        prepared({"text": "abcdefg"}, **options)
    assert message in str(error.value)


def test_a_tokenizer_without_an_end_token(prepared: Prepare) -> None:
    tokenizer = tokenizers.characters()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="the tokenizer has no end token and end_token_id is None: give the network's"):
        prepared({"text": "abcdefg"}, tokenizer=tokenizer)
    assert len(prepared({"text": "abcdefg"}, tokenizer=tokenizer, end_token_id=2)) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = write(tmp_path / "a.jsonl", {"text": "abcdefg"})
    with pytest.raises(UserError, match=r"cache_dir .* cannot be written \(.*\): give another folder\."):
        prepare(source, tokenizer, DataConfig(length=8), cache_dir=source)


# ---- batches ---------------------------------------------------------------------------------------


def test_batches_of_packed_rows(prepared: Prepare) -> None:
    rows = prepared({"text": "abcd"}, {"text": "ef"}, {"text": "ghijklm"})
    batch = collate([rows[1], rows[0]])
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "sample": (torch.int64, (2,)), "input_ids": (torch.int64, (2, 8)), "valid": (torch.bool, (2, 8)),
        "document": (torch.int64, (2, 8)),
    }  # fmt: skip
    assert batch["sample"].tolist() == [1, 0]
    assert batch["valid"].all()
    assert batch["document"][1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_batches_of_answers(prepared: Prepare) -> None:
    turns = [user("a"), assistant("bc"), user("d"), assistant("efg")]
    rows = prepared({"prompt": "a", "response": "bcd"}, {"messages": turns}, kind="sft", length=64)
    [batch] = DataLoader(rows, batch_size=2, collate_fn=lambda rows: collate(rows, pad_token_id=7))
    short = len(rows[0]["input_ids"])
    assert batch["input_ids"][0, :short].tolist() == rows[0]["input_ids"]
    assert batch["input_ids"][0, short:].unique().tolist() == [7]
    assert batch["valid"].sum(dim=1).tolist() == [short, len(rows[1]["input_ids"])]
    assert batch["prompt_length"].tolist() == rows["prompt_length"][:]
    assert batch["turns"].tolist() == [[*rows[0]["turns"], [0, 0]], rows[1]["turns"]]


# ---- real data -------------------------------------------------------------------------------------


def test_public_texts(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.stories(shared_data)
    source = shared_data / "llamafactory_demo" / "c4_demo.jsonl"
    rows = prepare(source, tokenizer, DataConfig(length=256), cache_dir=tmp_path)
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    stream = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    assert np.concatenate(rows.with_format("numpy")["input_ids"][:]).tolist() == stream[: len(rows) * 256]
    assert report_of(rows).tokens == len(stream)
    assert report_of(rows).bytes_per_token == pytest.approx(sum(len(text.encode()) for text in texts) / len(stream))
    digest = hashlib.sha256(bytes(np.asarray(rows["document"][:], np.uint8))).hexdigest()
    assert digest == hashlib.sha256(bytes(document_numbers(stream, tokenizer.bos_token_id, len(rows)))).hexdigest()


def document_numbers(stream: list[int], bos: int, rows: int) -> list[int]:
    """Slow twin: a document begins with <s>, or with the row."""
    numbers: list[int] = []
    for at, token in enumerate(stream[: rows * 256]):
        numbers.append(0 if at % 256 == 0 else numbers[-1] + (token == bos))
    return numbers


@pytest.mark.parametrize("name", ["rows.arrow", "report.json", "checksums.json"])
@pytest.mark.parametrize("change", ["bit", "cut", "missing"])
def test_damaged_rows_are_made_again(prepared: Prepare, tmp_path: Path, name: str, change: str) -> None:
    lines = [{"text": "one and two"}, {"text": "three and four"}]
    expected = list(prepared(*lines))
    [file] = (tmp_path / "cache").glob(f"*/{name}")
    content = file.read_bytes()
    if change == "missing":
        file.unlink()
    else:
        half = len(content) // 2
        file.write_bytes(
            content[:half] + (bytes([content[half] ^ 4]) + content[half + 1 :] if change == "bit" else b"")
        )
    dataset = prepared(*lines)
    assert list(dataset) == expected
    assert report_of(dataset).rows == len(expected)
    assert file.read_bytes() == content


def test_a_damaged_report_is_told(prepared: Prepare, tmp_path: Path) -> None:
    dataset = prepared({"text": "one and two"})
    [file] = (tmp_path / "cache").glob("*/report.json")
    for text in ("{", "[]", '{"row": 3}', "\0"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"report\.json' is damaged: call anyorder\.data\.prepare again"):
            report_of(dataset)
