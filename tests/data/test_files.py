"""Folders as people have them, and files that are compressed, damaged or no UTF-8."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from anyorder.data import BadLines, DataConfig, inspect_data, prepare, read_records, read_texts, report_of
from anyorder.data.records import Dialogue, Document
from anyorder.errors import UserError
from tests.data import tokenizers
from tests.data.test_readers import said


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd, ".lz4": lz4,
}  # fmt: skip


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def texts(path: Path, bad_lines: BadLines | None = None) -> list[str]:
    return [record.text for record in read_records(path, bad_lines) if isinstance(record, Document)]


# ---- folders ---------------------------------------------------------------------------------------


def names(passed_over: list[str], folder: Path) -> dict[str, str]:
    """The reason for each file."""
    parts = [entry.split("': ") for entry in passed_over]
    return {name.removeprefix(f"'{folder}{os.sep}"): reason for name, reason in parts}


def test_a_clone_of_a_data_set(tmp_path: Path) -> None:
    files = {
        "README.md": b"---\nlicense: mit\n---\n# Card", "LICENSE": b"MIT", "LICENSE.txt": b"MIT", "readme_zh.md": b"#",
        "dataset_infos.json": b"{}", ".gitattributes": b"*", ".git/x.txt": b"x", "figure.png": b"", "load.py": b"",
        "data.zip": b"PK", "part1.jsonl": line("a"), "part2.jsonl.gz": gzip.compress(line("b")), "notes.md": b"# c",
    }  # fmt: skip
    bad_lines = BadLines()
    assert texts(write_all(tmp_path, files), bad_lines) == ["# c", "a", "b"]
    about, kind = "about the data", "of no kind that is read"
    assert names(bad_lines.passed_over, tmp_path) == {
        "README.md": about, "LICENSE": kind, "LICENSE.txt": about, "readme_zh.md": about, "dataset_infos.json": about,
        "figure.png": kind, "load.py": kind, "data.zip": kind,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["train.jsonl", "test.jsonl", "validation.jsonl", "more.jsonl"], ["more.jsonl", "train.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/dev-0.jsonl"], ["data/train-00000-of-00002.jsonl"]),
        (["train/0.jsonl", "test/0.jsonl", "val/0.jsonl"], ["train/0.jsonl"]),
        (["main/train.jsonl", "main/eval.jsonl"], ["main/train.jsonl"]),
        (["test.jsonl", "valid.jsonl"], ["test.jsonl", "valid.jsonl"]),  # nothing else is there
        (["trainmodel.jsonl", "contest.jsonl"], ["contest.jsonl", "trainmodel.jsonl"]),  # other words
    ],
)
def test_splits(tmp_path: Path, files: list[str], read: list[str]) -> None:
    write_all(tmp_path, {name: line(name) for name in files})
    bad_lines = BadLines()
    assert texts(tmp_path, bad_lines) == read
    assert sorted(names(bad_lines.passed_over, tmp_path)) == sorted(set(files) - set(read))


def test_what_datasets_saved(tmp_path: Path) -> None:
    train = datasets.Dataset.from_dict({"question": [f"q{n}" for n in range(700)], "answer": ["a"] * 700})
    saved = datasets.DatasetDict(train=train, test=train.select([0]))
    saved.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "test": 1})
    # Results of functions are kept beside the rows, and are no rows.
    datasets.load_from_disk(str(tmp_path / "saved"))["train"].map(lambda row: {"answer": "b"}, new_fingerprint="0")
    assert (tmp_path / "saved" / "train" / "cache-0.arrow").exists()
    bad_lines = BadLines()
    records = list(read_records(tmp_path / "saved", bad_lines))
    assert [said(record) for record in records] == [[("user", f"q{n}"), ("assistant", "a")] for n in range(700)]
    assert str(records[-1].place).endswith("data-00001-of-00002.arrow', row 350")
    reasons = names(bad_lines.passed_over, tmp_path / "saved")
    assert reasons["train/cache-0.arrow"] == "not among the rows that the library datasets lists"
    assert reasons["test/data-00000-of-00001.arrow"] == "the test split"
    assert [reasons[name] for name in ("dataset_dict.json", "train/state.json")] == ["about the data"] * 2


def test_llama_factorys_folder(tmp_path: Path) -> None:
    info = {
        "mine": {"file_name": "mine.json", "columns": {"prompt": "ask", "query": "with", "response": "say"}},
        "raw": {"file_name": "raw.jsonl", "columns": {"prompt": "body"}},
        "talk": {
            "file_name": "talk.json", "formatting": "sharegpt", "columns": {"messages": "turns", "system": "sys"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you"},
        },
        "hub": {"hf_hub_url": "a/b"},
    }  # fmt: skip
    turns = [{"who": "me", "what": "a"}, {"who": "you", "what": "b"}]
    files = {
        "dataset_info.json": info,
        "mine.json": [{"ask": "i", "with": "n", "say": "o"}],
        "other.json": [{"instruction": "i", "output": "o"}],
        "raw.jsonl": {"body": "t"},
        "talk.json": [{"turns": turns, "sys": "s"}],
    }
    write_all(tmp_path, {name: json.dumps(data).encode() for name, data in files.items()})
    mine, other, raw, talk = read_records(tmp_path)
    assert said(mine) == [("user", "i\nn"), ("assistant", "o")]
    assert said(other) == [("user", "i"), ("assistant", "o")]
    assert isinstance(raw, Document)
    assert raw.text == "t"
    assert said(talk) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert said(next(iter(read_records(tmp_path / "mine.json")))) == said(mine)


def test_reports_tell_of_what_was_passed_over(tmp_path: Path) -> None:
    write_all(tmp_path / "data", {"README.md": b"# Card", "a.jsonl": line("a" * 9)})
    rows = prepare(tmp_path / "data", tokenizers.characters(), DataConfig(length=4), cache_dir=tmp_path)
    expected = [f"'{tmp_path / 'data' / 'README.md'}': about the data"]
    assert report_of(rows).passed_over == expected
    assert inspect_data(tmp_path / "data", tokenizers.characters(), DataConfig(length=4)).report.passed_over == expected


def test_a_folder_of_nothing_but_a_card(tmp_path: Path) -> None:
    write_all(tmp_path, {"README.md": b"# Card"})
    with pytest.raises(UserError, match=r"has no data: put files .*; passed over: .*README.md': about the data\.$"):
        list(read_records(tmp_path))


# ---- single files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", line("a") + line("é")),
        ("a.json", b'[{"text":\n "a"},\n {"text": "\xc3\xa9"}]'),
        ("a.txt", "a\n<|endoftext|>\né".encode()),
        ("a.csv", "text\na\né\n".encode()),
    ],
)
def test_compressed_files(tmp_path: Path, suffix: str, name: str, data: bytes) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKED[suffix](data))
    assert texts(path) == list(read_texts(path)) == ["a", "é"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.mark.parametrize(
    "name", ["a.txt", "a.md", "a.jsonl", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz", "a.txt.zst"]
)
def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match="the file is a pointer of Git LFS, not the data: fetch it by `git lfs pull`"):
        list(read_records(tmp_path))
    (tmp_path / "b.txt").write_text("version https://example.org")
    bad_lines = BadLines(skip=True)
    assert len(list(read_records(tmp_path, bad_lines))) == 1
    assert len(bad_lines.found) == 1


def test_links_to_nothing_are_listed(tmp_path: Path) -> None:
    """As in a cache of the hub from which a file was removed."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "none")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "a.jsonl")
    bad_lines = BadLines()
    assert len(list(read_records(tmp_path, bad_lines))) == 2
    assert bad_lines.passed_over == [f"{str(tmp_path / 'b.jsonl')!r}: a link to nothing"]


@pytest.mark.parametrize("suffix", PACKED)
def test_files_of_several_compressed_pieces(tmp_path: Path, suffix: str) -> None:
    """As `cat` makes them, and compressors that use many threads."""
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKED[suffix](line("a")) + PACKED[suffix](line("b")))
    assert texts(tmp_path / f"a.jsonl{suffix}") == ["a", "b"]


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_compressed_files(tmp_path: Path, suffix: str, damage: str) -> None:
    packed = PACKED[suffix](b"".join(line(os.urandom(500).hex()) for _ in range(99)))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed[: len(packed) // 2] if damage == "cut" else b"something else")
    with pytest.raises(
        UserError, match=r"line \d+: cannot be read from here on \(.*\): fetch or export the file again"
    ):
        texts(tmp_path / f"a.jsonl{suffix}")
    write_all(tmp_path, {"b.jsonl": line("b")})
    bad_lines = BadLines(skip=True)
    assert texts(tmp_path, bad_lines)[-1] == "b"
    assert len(bad_lines.found) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_files_of_other_encodings(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_text('{"text": "a"}\n', encoding=encoding)
    with pytest.raises(
        UserError, match=r"line 1: (is not UTF-8 but UTF-16 or|has a NUL byte).*: convert the file to UTF-8"
    ):
        texts(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_marks_of_utf_8_wherever_files_were_joined(tmp_path: Path, name: str) -> None:
    lines = [line("a"), line("b")] if name == "a.jsonl" else [b"a\n", b"<|endoftext|>\n", b"b\n"]
    (tmp_path / name).write_bytes(b"".join(b"\xef\xbb\xbf" + one for one in lines))
    assert texts(tmp_path / name) == ["a", "b"]


def test_parts_of_a_dialogue_are_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    """`datasets` reads what it writes; the same records come from its files of every kind."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"y": "s"}}}
    rows = [
        {"messages": [
            {"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": None, "tool_calls": [one]},
            {"role": "tool", "content": "r"}, {"role": "assistant", "content": "done"},
        ]}
        for number, one in enumerate([call, other])
    ]  # fmt: skip
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.data.schema) as writer:
        writer.write_table(table.data.table)
    dialogues = [
        [record.messages for record in read_records(path) if isinstance(record, Dialogue)]
        for path in sorted(tmp_path.iterdir())
    ]
    assert len(dialogues[0]) == 2
    assert dialogues[0] == dialogues[1] == dialogues[2]
