"""`anyorder data`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyorder.checkpoints import load_tokenizer
from anyorder.cli import main
from tests.cli.test_main import mistake


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    turns = [("human", "Who?"), ("gpt", "Lily."), ("human", "When?"), ("gpt", "Once upon a time.")]
    lines = [{"conversations": [{"from": who, "value": text} for who, text in turns]}, {"text": "no answer"}]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_inspect_shows_the_answers(capsys: pytest.CaptureFixture[str], folder: Path, dialogues: Path) -> None:
    words = ["--tokenizer", str(folder), "--kind", "sft", "--length", "100"]
    assert main(["data", "inspect", str(dialogues), *words]) == 0
    out = capsys.readouterr().out
    assert "records   1 of the form ShareGPT" in out
    assert "rows      1 of at most 100 tokens" in out
    shown = out[out.index("\nuser:\n") + 1 : out.index("\n\n1 line left out")]
    assert shown == (
        "user:\nWho?\n\nassistant:\n⟦Lily.<|endoftext|>⟧\n\nuser:\nWhen?\n\nassistant:\n"
        "⟦Once upon a time.<|endoftext|>⟧"
    )
    assert f"{str(dialogues)!r}, line 2: has no answer." in out


def test_inspect_shows_documents_and_lengths(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Lily.\nOnce upon a time.\n" * 9)
    words = ["--tokenizer", str(folder), "--length", "32", "--documents", "lines", "--examples", "1"]
    assert main(["data", "inspect", str(tmp_path / "a.txt"), *words]) == 0
    out = capsys.readouterr().out
    assert "⟦Lily.<|endoftext|>⟧⟦Once upon a time.<|endoftext|>⟧⟦Lily." in out
    assert out.count("sample ") == 1
    bars = [line.split() for line in out.splitlines() if line.startswith("  up to")]
    assert sum(int(bar[-1]) for bar in bars) == 18
    assert max(len(bar[-2]) for bar in bars) == 40
    assert all(len(line) <= 80 for line in out.splitlines() if "⟦" not in line)


def test_inspect_shows_the_ends_of_long_texts(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A" + "b" * 1000 + "C")
    words = ["--tokenizer", str(folder), "--length", "2000", "--unpacked"]
    assert main(["data", "inspect", str(tmp_path / "a.txt"), *words]) == 0
    out = capsys.readouterr().out
    assert f"⟦A{'b' * 159} ... {'b' * (160 - len('C<|endoftext|>'))}C<|endoftext|>⟧" in out


def test_inspect_token_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input_ids": [5, 6, 7], "prompt_length": 1}\n')
    words = ["--vocab_size", "9", "--kind", "sft", "--mask_token_id"]
    assert main(["data", "inspect", str(tmp_path / "a.jsonl"), *words, "8"]) == 0
    assert "5⟦6 7⟧" in capsys.readouterr().out
    assert main(["data", "inspect", str(tmp_path / "a.jsonl"), *words, "7"]) == 0
    assert "has the mask token, 7." in capsys.readouterr().out


def test_inspect_with_a_template(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "Who", "answer": "Lily"}\n')
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    words = ["--tokenizer", str(folder), "--kind", "sft", "--length", "64"]
    template = str(tmp_path / "chat.jinja")
    assert main(["data", "inspect", str(tmp_path / "a.jsonl"), *words, "--template", template]) == 0
    assert "[Who]⟦[Lily]" in capsys.readouterr().out
    assert "no template in Jinja" in mistake(
        capsys, "data", "inspect", str(tmp_path / "a.jsonl"), *words, "--template", "chatml"
    )


def test_convert(capsys: pytest.CaptureFixture[str], dialogues: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "messages.jsonl")
    assert "line 2: is no dialogue but text" in mistake(capsys, "data", "convert", str(dialogues), target)
    words = [str(dialogues), target, "--form", "sharegpt", "--skip_bad_lines"]
    assert main(["data", "convert", *words]) == 0
    notes = " ".join(capsys.readouterr().err.split())
    assert "1 line left out" in notes
    assert f"wrote 1 dialogues to {target}" in notes
    assert json.loads(Path(target).read_text())["messages"][0] == {"role": "user", "content": "Who?"}
    assert "is there already: give a new name" in mistake(capsys, "data", "convert", *words)


def test_tokenizer(capsys: pytest.CaptureFixture[str], dialogues: Path, tmp_path: Path) -> None:
    target = tmp_path / "tokenizer"
    assert main(["data", "tokenizer", str(dialogues), str(target), "--vocab_size", "300", "--mask"]) == 0
    tokenizer = load_tokenizer(target)
    assert len(tokenizer) <= 300
    assert tokenizer.mask_token == "<|mask|>"
    assert tokenizer.decode(tokenizer("Once Lily.")["input_ids"]) == "Once Lily."
    assert f"wrote {target}: {len(tokenizer)} tokens" in " ".join(capsys.readouterr().err.split())


def test_mistakes(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    source = str(tmp_path / "a.txt")
    Path(source).write_text("Lily.")
    assert "tokenizer is missing: give --tokenizer, or for data" in mistake(capsys, "data", "inspect", source)
    words = ["--tokenizer", str(folder)]
    assert "--examples is -1: give 0 or a number above." in mistake(
        capsys, "data", "inspect", source, *words, "--examples", "-1"
    )
    assert "is no file or folder here: check the path." in mistake(capsys, "data", "inspect", source + "x", *words)
    assert "is not empty: give a new folder" in mistake(capsys, "data", "tokenizer", source, str(folder))
    assert "vocab_size is 100: give at least 257" in mistake(
        capsys, "data", "tokenizer", source, str(tmp_path / "t"), "--vocab_size", "100"
    )
    assert "command 'data konvert' is unknown: did you mean convert? If not, use one of inspect, convert" in mistake(
        capsys, "data", "konvert"
    )
