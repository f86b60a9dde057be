"""`anyorder generate --output`: texts of a file of prompts, kept line by line, so that the same command resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from anyorder.cli import main
from anyorder.serving.many import ManyPrompts
from tests.cli.test_generate_many import LOG_PROB
from tests.cli.test_main import mistake

LINES = [{"prompt": f"{word} {number}", "id": number} for number, word in enumerate(["Once", "Lily", "a girl"] * 4)]

Words = list[str]


def texts(lines: Path | str) -> list[str]:
    """Lines without what rounding changes."""
    text = lines if isinstance(lines, str) else lines.read_text()
    return LOG_PROB.sub("", text).splitlines()


@pytest.fixture
def words(folder: Path, tmp_path: Path) -> Words:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    options = ["--max_new_tokens", "4", "--temperature", "1", "--num_samples", "2", "--batch_size", "4"]
    return ["generate", str(folder), "--prompts_file", str(tmp_path / "p.jsonl"), *options]


@pytest.fixture
def printed(words: Words, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--json"]) == 0
    return capsys.readouterr().out


def interrupt(monkeypatch: pytest.MonkeyPatch, command: Words, prompts: int) -> None:
    """Run a command until the texts of so many prompts are written."""
    write = ManyPrompts.write

    def interrupted(self: ManyPrompts, *given: Any) -> Any:
        for number, out in enumerate(write(self, *given)):
            if number == prompts:
                raise KeyboardInterrupt
            yield out

    with monkeypatch.context() as patched:
        patched.setattr(ManyPrompts, "write", interrupted)
        assert main(command) == 130


def test_texts_are_kept_and_the_same_command_resumes(
    words: Words, printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    command = [*words, "--output", str(place)]
    interrupt(monkeypatch, command, 5)
    assert "10 of 24 texts are finished" in capsys.readouterr().err
    assert (place.exists(), texts(partial)) == (False, texts(printed)[:10])
    partial.write_text(partial.read_text() + printed.splitlines(keepends=True)[10] + '{"id": 5, "pro')  # killed there
    interrupt(monkeypatch, command, 3)
    assert texts(partial) == texts(printed)[:16]
    capsys.readouterr()
    assert main([*command, "--batch_size", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{place}: 24 texts\n"
    assert "forward passes" in captured.err
    assert texts(place) == texts(printed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "p.jsonl"]
    assert mistake(capsys, *command).endswith("give a new name, delete it first, or overwrite it with --force.")
    assert main([*command, "--force"]) == 0
    assert texts(place) == texts(printed)


def test_what_was_begun_otherwise_is_refused(
    words: Words, printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, partial, prompts = (tmp_path / name for name in ("out.jsonl", "out.jsonl.partial", "p.jsonl"))
    command = [*words, "--output", str(place)]
    interrupt(monkeypatch, command, 2)
    kept, given = partial.read_bytes(), prompts.read_text()
    capsys.readouterr()
    message = f"'{partial}' holds texts of a run with seed 0, not 1: give another output, or the settings of that run."
    assert mistake(capsys, *command, "--seed", "1") == message
    assert "of a run with --max_new_tokens 4, not 5" in mistake(capsys, *command, "--max_new_tokens", "5")
    assert "of a run with order None, not 'left" in mistake(capsys, *command, "--order", "left-to-right")
    prompts.write_text(given.replace("Lily 1", "Lily 2"))
    assert mistake(capsys, *command) == (
        f"line 3 of '{partial}' continues the prompt 'Lily 1', but line 2 of '{prompts}' has another one: give another "
        "output, or the prompts of that run."
    )
    prompts.write_text(given.splitlines()[0])
    assert "continues the prompt 'Lily 1', but there is no such prompt" in mistake(capsys, *command)
    assert partial.read_bytes() == kept
    partial.write_bytes(b"[1]\n" + kept)
    assert f"line 1 of '{partial}' is damaged: delete the file" in mistake(capsys, *command)
    (tmp_path / "out.jsonl.partial.json").unlink()
    assert f"missing or damaged: delete '{partial}', which it describes." in mistake(capsys, *command)
    partial.write_bytes(kept)
    prompts.write_text(given)
    assert main([*command, "--seed", "1", "--force"]) == 0
    assert texts(place) != texts(printed)


def test_prompts_that_follow_may_change(
    words: Words, printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where one of them was a mistake: what was written before it stays."""
    place, prompts = tmp_path / "out.jsonl", tmp_path / "p.jsonl"
    given = prompts.read_text()
    prompts.write_text(given.replace("a girl 5", "a girl " * 40))
    assert main([*words, "--output", str(place)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: line 6 of '{prompts}' has ")
    assert error.endswith("and the network was trained on 64: shorten it to at most 63, which leaves room to write.")
    assert texts(tmp_path / "out.jsonl.partial") == texts(printed)[:10]
    prompts.write_text(given)
    assert main([*words, "--output", str(place)]) == 0
    assert texts(place) == texts(printed)


def test_what_the_engine_does_not_write_is_kept_too(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beams = [*words[:4], "--num_beams", "2", "--max_new_tokens", "3", "--batch_size", "5"]
    assert main([*beams, "--json"]) == 0
    printed = capsys.readouterr().out
    assert main([*beams, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert (tmp_path / "out.jsonl").read_text() == printed
    assert [json.loads(line)["id"] for line in printed.splitlines()] == list(range(12))
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    (tmp_path / "p.jsonl").write_text("\n".join([*lines[:6], json.dumps("girl " * 40)]))
    assert main(beams) == 2
    assert f"line 7 of '{tmp_path / 'p.jsonl'}' has " in capsys.readouterr().err


def test_options_that_exclude_each_other(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--output", str(tmp_path / "out.jsonl")]
    assert mistake(capsys, *words[:2], "Once", *place) == (
        "--output is given without --prompts_file, whose texts alone it keeps: add that, or leave it out."
    )
    assert mistake(capsys, *words, *place, "--trace", str(tmp_path / "t.json")) == (
        "--output is given with --trace, which a later run does not resume: leave out one of them."
    )
    message = "--gap_tokens is 3, but no prompt has a gap: write [...] where tokens are missing."
    assert mistake(capsys, *words, "--gap_tokens", "3") == message


def test_a_pipe_is_read_once(words: Words, printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("Once\nLily\n")
    assert main([*words[:3], f"/dev/fd/{reading}", "--max_new_tokens", "2"]) == 0
    os.close(reading)
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_twice(words: Words, printed: str, tmp_path: Path) -> None:
    lines = [{"prompt": f"Once {number}"} for number in range(120)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    place, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    command = [*words, "--max_new_tokens", "30", "--output"]
    kept = b""
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-m", "anyorder", *command, str(place)], stderr=subprocess.PIPE)
        while process.poll() is None and (not partial.exists() or partial.stat().st_size <= len(kept) + 2000):
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -9
        found = partial.read_bytes()
        assert found.startswith(kept[: kept.rfind(b"\n") + 1])
        kept = found
    assert main([*command, str(place)]) == 0
    assert main([*command, str(tmp_path / "whole.jsonl")]) == 0
    assert texts(place) == texts(tmp_path / "whole.jsonl")
    assert len(place.read_text().splitlines()) == 240
