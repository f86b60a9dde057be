"""`anyorder demo`, with few steps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import anyorder
from anyorder import training
from anyorder.cli import main
from tests.cli.test_main import mistake


def test_trains_once_then_only_writes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output), "--steps", "2"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("stories: a Llama of ")
    assert "\ntraining a Llama of " in first
    assert "<html" in (output / "replay.html").read_text()
    assert json.loads((output / "demo.json").read_text())["steps"] == 2
    model, tokenizer = anyorder.load(output)
    assert anyorder.generate(model, tokenizer, "The", max_new_tokens=3).token_ids

    def not_again(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_causal", not_again)
    assert main(["demo", "--output", str(output)]) == 0
    second = capsys.readouterr().out
    # All but the line of speed is the same.
    shown, _, trained = first.partition("training a Llama of ")
    assert second.startswith(shown)
    assert all(len(line) <= 80 for line in shown.splitlines() if str(tmp_path) not in line)
    assert second[len(shown) : second.index(" tokens in ")] in trained
    assert "2 steps in" in second
    assert "\ndef" in second

    before = sorted((path.name, path.stat().st_mtime_ns) for path in output.iterdir())
    assert main(["demo", "--output", str(output), "--retrain"]) == 130
    assert capsys.readouterr().err == "\ninterrupted.\n"
    assert sorted((path.name, path.stat().st_mtime_ns) for path in output.iterdir()) == before

    (output / "demo.json").write_text("{")
    assert "is damaged: run `anyorder demo --retrain`" in mistake(capsys, "demo", "--output", str(output))


def test_retrain_replaces_the_folder(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    for steps in ("1", "2"):
        assert main(["demo", "--output", str(output), "--steps", steps, "--retrain"]) == 0
        assert json.loads((output / "demo.json").read_text())["steps"] == int(steps)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_keeps_its_hands_off_other_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    for words in ([], ["--retrain"]):
        message = mistake(capsys, "demo", "--output", str(tmp_path), *words)
        assert "holds something else: give the name of a new folder" in message
        assert "holds something else" in mistake(capsys, "demo", "--output", str(tmp_path / "mine"), *words)
    assert (tmp_path / "mine").read_text() == "keep"


def test_refuses_no_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo"), "--steps", "0"]) == 2
    assert "error: --steps is 0: give a whole number above 0." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interrupted_in_the_middle(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from anyorder.cli import main; sys.exit(main())", "demo"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "demo")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("training a Llama"):
            break
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "\ninterrupted.\n"
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["demo/replay.html"]
