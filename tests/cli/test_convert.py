"""`anyorder convert`."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyorder
from anyorder.cli import main
from tests.cli.test_main import mistake


def test_stories_tell_the_same_from_the_folder(
    capsys: pytest.CaptureFixture[str], shared_data: Path, tmp_path: Path
) -> None:
    stories = shared_data / "stories260K"
    words = [str(stories / "stories260K.bin"), str(tmp_path / "s"), "--tokenizer", str(stories / "tok512.bin")]
    assert main(["convert", *words]) == 0
    assert capsys.readouterr().err == f"wrote {tmp_path / 's'}\n"
    assert main(["generate", str(tmp_path / "s"), "Once upon a time", "--max_new_tokens", "11"]) == 0
    assert capsys.readouterr().out == "Once upon a time, there was a little girl named Lily.\n"


def test_back_and_forth(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    model, _ = anyorder.load(tmp_path / "half")
    assert str(model.dtype) == "torch.bfloat16"


def test_nothing_is_left_of_what_fails(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("keep")
    assert "not empty" in mistake(capsys, "convert", str(folder), str(tmp_path / "taken"))
    assert "no folder or file" in mistake(capsys, "convert", str(tmp_path / "nothing"), str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
