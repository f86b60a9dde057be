"""`--force`: what is there already is overwritten once the new one is whole, and not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyorder.cli import command_names, command_of, main
from anyorder.cli._groups import OVERWRITE
from anyorder.cli._signature import explanations, parameters_of
from tests.cli.test_main import mistake


def test_every_command_that_writes_a_place_takes_it() -> None:
    for name in command_names():
        command = command_of(name)
        new = {option for option, text in explanations(command).items() if text.startswith("New ")}
        assert new <= set(OVERWRITE.get(name, ())), name
        assert set(OVERWRITE.get(name, ())) <= parameters_of(command).keys()


def test_a_converted_folder_is_replaced(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    words = ["convert", str(folder), str(target)]
    assert main(words) == 0
    (target / "old.txt").write_text("old")
    capsys.readouterr()
    assert mistake(capsys, *words).endswith("give a new folder, empty this one first, or overwrite it with --force.")
    assert mistake(capsys, "convert", str(folder), str(target), "--kv_heads", "3", "--force")  # does not divide
    assert (target / "old.txt").exists()
    assert main([*words, "--force"]) == 0
    assert not (target / "old.txt").exists()
    assert (target / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_is_converted_in_its_place(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert main(["convert", str(folder), str(target)]) == 0
    assert main(["convert", str(target), str(target), "--dtype", "float16", "--force"]) == 0
    assert json.loads((target / "config.json").read_text())["dtype"] == "float16"
    assert main(["info", str(target)]) == 0


def test_what_is_no_output_of_ours_stays(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    message = mistake(capsys, "convert", str(folder), str(tmp_path / "letters"), "--force")
    assert "holds something else than an output of anyorder, which --force does not overwrite" in message
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_the_folder_where_it_runs_stays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert "is the one where this runs, or above it" in mistake(capsys, "convert", str(folder), "..", "--force")


def test_files_are_replaced(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    trace.write_text("old")
    words = ["generate", str(folder), "Once", "--max_new_tokens", "2", "--trace", str(trace)]
    assert mistake(capsys, *words).endswith("give a new name, delete it first, or overwrite it with --force.")
    assert main([*words, "--force"]) == 0
    assert trace.read_text().startswith("{")
    (tmp_path / "c.yaml").write_text("force: true\n")
    assert main([*words, "--config", str(tmp_path / "c.yaml")]) == 0


def test_commands_that_write_no_place_do_not_know_it(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "option --force is unknown" in mistake(capsys, "info", str(folder), "--force")


TINY = ["--steps", "2", "--width", "8", "--layers", "1", "--heads", "1", "--length", "8", "--vocab_size", "260"]


def test_a_training_is_replaced_once_the_new_one_has_a_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question\n" * 20)
    words = ["pretrain", "--data", str(tmp_path / "a.txt"), "--output", str(tmp_path / "run"), *TINY]
    words += ["--cache_dir", str(tmp_path / "cache")]
    assert main(words) == 0
    (tmp_path / "run" / "old.txt").write_text("old")
    capsys.readouterr()
    assert "or overwrite it with --force." in mistake(capsys, *words)
    mistake(capsys, *words, "--resume", "--force")
    inside = str(tmp_path / "run")
    assert "in the folder that --force overwrites" in mistake(
        capsys, "sft", "--data", str(tmp_path / "a.txt"), "--output", inside, "--init", inside, "--force"
    )

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("anyorder.training.runs.run", interrupted)
        assert main([*words, "--force"]) == 130
    assert (tmp_path / "run" / "old.txt").exists()
    assert main([*words, "--force"]) == 0
    assert not (tmp_path / "run" / "old.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "run", "cache"}
