"""`anyorder generate`: where prompts come from, and how the writing is shown."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import anyorder
import anyorder.api.generate
from anyorder.api.output import Stream
from anyorder.cli import main
from anyorder.model.llama import Llama
from tests.cli.test_main import mistake


def written(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command line that must succeed prints on standard output."""
    assert main(["generate", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """Put text on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def expected(folder: Path, prompts: list[str], **options: Any) -> list[str]:
    model, tokenizer = anyorder.load(folder)
    text = anyorder.generate(model, tokenizer, prompts, **options).text
    assert isinstance(text, list)
    return [prompt + part for prompt, part in zip(prompts, text, strict=True)]


def test_a_prompt(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    [text] = expected(folder, ["Once upon"], max_new_tokens=8)
    assert main(["generate", str(folder), "Once upon", "--max_new_tokens", "8"]) == 0
    captured = capsys.readouterr()
    assert captured.out == text + "\n"
    assert "8 tokens in 8 forward passes" in captured.err
    assert "tokens/s" in captured.err


def test_options_may_have_dashes(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = [str(folder), "Once upon"]
    assert written(capsys, *words, "--max-new-tokens=5") == written(capsys, *words, "--max_new_tokens", "5")


@pytest.mark.parametrize("words", [[], ["-"]])
def test_standard_input_is_one_prompt(capsys: pytest.CaptureFixture[str], folder: Path, typed, words) -> None:
    [text] = expected(folder, ["Once\nupon"], max_new_tokens=4)
    typed(b"Once\nupon\n")
    assert written(capsys, str(folder), *words, "--max_new_tokens", "4") == text + "\n"


@pytest.mark.parametrize("source", ["file", "-"])
def test_a_file_has_one_prompt_in_each_line(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, typed, source: str
) -> None:
    options = {"max_new_tokens": 6, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 3}
    texts = expected(folder, ["Once", "a time", "Lily"], **options)
    data = b"Once\na time\nLily\n"
    (tmp_path / "prompts").write_bytes(data)
    typed(data)
    file = "-" if source == "-" else str(tmp_path / "prompts")
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    for size in ("1", "2", "16"):
        out = written(capsys, str(folder), "--prompts_file", file, "--batch_size", size, *words)
        assert out == "\n\n".join(texts) + "\n"
        typed(data)


def test_json_lines(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("Once upon\nLily\n")
    words = [str(folder), "--prompts_file", str(tmp_path / "prompts"), "--max_new_tokens", "4", "--json"]
    records = [json.loads(line) for line in written(capsys, *words).splitlines()]
    texts = expected(folder, ["Once upon", "Lily"], max_new_tokens=4)
    assert [record["prompt"] + record["text"] for record in records] == texts
    for record in records:
        assert record["stopped"] == "length"
        assert len(record["token_ids"]) == record["trace"]["tokens"] == record["trace"]["passes"] == 4
        assert record["trace"]["log_prob"] < 0


@pytest.mark.parametrize("flag", [["--stream"], []], ids=["asked for", "on a terminal"])
def test_a_single_text_is_streamed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, flag: list[str]
) -> None:
    streamed: list[str] = []
    stream = anyorder.api.generate.stream

    def spy(model: Llama, tokenizer: Any, prompt: str, **options: Any) -> Stream:
        streamed.append(prompt)
        return stream(model, tokenizer, prompt, **options)

    monkeypatch.setattr(anyorder.api.generate, "stream", spy)
    words = [str(folder), "Once [b]upon", "--max_new_tokens", "12", "--temperature", "1.1", "--min-p", "0.01"]
    [text] = expected(folder, ["Once [b]upon"], max_new_tokens=12, temperature=1.1, min_p=0.01)
    assert written(capsys, *words) == text + "\n"
    assert streamed == []
    if not flag:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
    assert main(["generate", *words, *flag]) == 0
    captured = capsys.readouterr()
    assert re.sub("\x1b\\[[0-9;]*m", "", captured.out) == text + "\n"
    assert ("\x1b[2mOnce [b]upon\x1b[0m" in captured.out) == (not flag)
    assert "12 tokens in 12 forward passes" in captured.err
    assert streamed == ["Once [b]upon"]


@pytest.mark.parametrize("options", [["--json"], ["--num-samples=1"], ["--num-beams=2"], ["--prompts_file", "two"]])
def test_what_cannot_be_streamed_is_written_at_once_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    tmp_path: Path,
    options: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two").write_text("Once\nLily\n")
    words = [str(folder), *([] if "two" in options else ["Once"]), "--max_new_tokens", "2", *options]
    monkeypatch.setattr(anyorder.api.generate, "stream", None)
    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stdout, "isatty", lambda: True)
        assert "Once" in written(capsys, *words)
    name = {"--prompts_file": "2 prompts"}.get(options[0], options[0][2:].replace("-", "_").replace("=", " "))
    called = name if name[0].isdigit() else f"--{name}"
    message = f"--stream is given with {called}, but only a single text is streamed: leave out one of them."
    assert mistake(capsys, "generate", *words, "--stream") == message


def test_samples(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("Once\nLily\n")
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.2, "seed": 4}
    texts = expected(folder, ["Once", "Once", "Lily", "Lily"], **options)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words = [str(folder), "--prompts_file", str(tmp_path / "prompts"), "--num-samples", "2", *words]
    assert written(capsys, *words) == "\n\n".join(texts) + "\n"
    records = [json.loads(line) for line in written(capsys, *words, "--json").splitlines()]
    assert [(record["prompt"], record["sample"]) for record in records] == [
        ("Once", 0), ("Once", 1), ("Lily", 0), ("Lily", 1),
    ]  # fmt: skip
    assert [record["prompt"] + record["text"] for record in records] == texts
    assert all(len(record["token_ids"]) == record["trace"]["tokens"] == 5 for record in records)


def test_beams(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    [text] = expected(folder, ["Once upon"], max_new_tokens=6, num_beams=3)
    assert written(capsys, str(folder), "Once upon", "--max_new_tokens", "6", "--num-beams", "3") == text + "\n"


def test_a_repetition_penalty(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    [text] = expected(folder, ["Once upon"], max_new_tokens=9, repetition_penalty=0.3)
    words = [str(folder), "Once upon", "--max_new_tokens", "9"]
    assert written(capsys, *words, "--repetition-penalty", "0.3") == text + "\n"
    assert written(capsys, *words) != text + "\n"


def test_stop_may_be_repeated(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    full = written(capsys, str(folder), "Once upon").removeprefix("Once upon")
    early, late = full[3:5], full[6:8]
    shorter = written(capsys, str(folder), "Once upon", "--stop", late, "--stop", early)
    assert shorter == "Once upon" + full[: full.index(early)] + "\n"


def test_configuration_file_and_command_line(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {folder}\nprompt: Lily\nmax_new_tokens: 5\njson: true\nstop: [zzz, '9']\n")
    record = json.loads(written(capsys, "--config", str(config)))
    assert record["prompt"] == "Lily"
    assert len(record["token_ids"]) == 5
    for words in (
        ["--config", str(config), "--max_new_tokens", "3"],
        ["--max_new_tokens", "3", "--config", str(config)],
        [str(folder), "--max-new-tokens=3", f"--config={config}"],
    ):
        record = json.loads(written(capsys, *words))
        assert record["prompt"] == "Lily"
        assert len(record["token_ids"]) == 3
    (tmp_path / "c.json").write_text(json.dumps({"model": str(folder), "max_new_tokens": 2}))
    [text] = expected(folder, ["Once"], max_new_tokens=2)
    assert written(capsys, str(folder), "Once", "--config", str(tmp_path / "c.json")) == text + "\n"


def test_mistakes(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, typed) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    latin = tmp_path / "latin"
    latin.write_bytes("café".encode("latin-1"))
    path = str(folder)
    assert "no folder or file here" in mistake(capsys, "generate", str(tmp_path / "nothing"), "p")
    assert "no file or folder here" in mistake(capsys, "generate", path, "p", "--tokenizer", str(tmp_path / "nothing"))
    assert "leave out one of them" in mistake(capsys, "generate", path, "p", "--prompts_file", str(empty))
    assert "which is empty: write one prompt" in mistake(capsys, "generate", path, "--prompts_file", str(empty))
    assert "No such file" in mistake(capsys, "generate", path, "--prompts_file", str(tmp_path / "nothing"))
    gap = tmp_path / "gap"
    gap.write_text("one\n\ntwo\n", encoding="utf-8")
    assert "line 2 of" in mistake(capsys, "generate", path, "--prompts_file", str(gap))
    assert "has bytes that are not UTF-8: convert" in mistake(capsys, "generate", path, "a\udcff")
    assert "is not UTF-8 at byte 3" in mistake(capsys, "generate", path, "--prompts_file", str(latin))
    typed(b"\xff")
    assert "standard input is not UTF-8 at byte 0" in mistake(capsys, "generate", path)
    typed(b"")
    assert "no token that begins a text: give at least one word" in mistake(capsys, "generate", path)
    assert "temperature is -1.0: give 0" in mistake(capsys, "generate", path, "p", "--temperature=-1")
    assert "min_p is 2.0: give a probab" in mistake(capsys, "generate", path, "p", "--min-p", "2")
    assert "num_samples is 3 at temperature 0" in mistake(capsys, "generate", path, "p", "--num-samples", "3")
    beams = mistake(capsys, "generate", path, "p", "--num-beams", "3", "--temperature", "1")
    assert beams == "--temperature is 1.0 beside --num_beams 3, but beam search draws nothing: leave out one."
    compiled = mistake(capsys, "generate", path, "p", "--compile", "yes")
    assert compiled == "--compile is 'yes': give one of auto, always, never."
    assert "revision is 'v1', but" in mistake(capsys, "generate", path, "p", "--revision", "v1")
    assert "trained on 64" in mistake(capsys, "generate", path, "one two three " * 100)
    assert "--device is 'gpu': did you mean cuda?" in mistake(capsys, "generate", path, "p", "--device", "gpu")
    assert "attention is 'fast'" in mistake(capsys, "generate", path, "p", "--attention", "fast")
