"""`anyorder convert`."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyorder
from anyorder.cli import main
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from tests.checkpoints.metas_form import write_metas_folder
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


def test_fewer_heads(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), str(tmp_path / "one"), "--kv-heads", "1", "--pooling", "first"]) == 0
    model, tokenizer = anyorder.load(tmp_path / "one", device="cpu")
    assert model.config.num_key_value_heads == 1
    assert tokenizer is not None
    capsys.readouterr()
    assert "give one of 1, 2." in mistake(capsys, "convert", str(folder), str(tmp_path / "new"), "--kv_heads", "3")
    words = ["convert", str(folder), str(tmp_path / "new"), "--kv_heads", "1", "--pooling", "median"]
    assert mistake(capsys, *words) == "--pooling is 'median': give mean, or another of mean, first, random."
    assert not (tmp_path / "new").exists()


def test_metas_folder(
    capsys: pytest.CaptureFixture[str], tiny_config: ModelConfig, shared_data: Path, tmp_path: Path
) -> None:
    source = write_metas_folder(Llama(tiny_config.replace(vocab_size=2256)), tmp_path / "llama", 2, embedding_rows=True)
    ranks = str(shared_data / "tiny_tokenizers" / "torchtune_tiktoken_small.model")
    (tmp_path / "tokenizer.model").symlink_to(ranks)
    words = [str(source), str(tmp_path / "new"), "--tokenizer", str(tmp_path / "tokenizer.model")]
    assert main(["convert", *words]) == 0
    model, tokenizer = anyorder.load(tmp_path / "new", device="cpu")
    assert tokenizer is not None
    assert len(tokenizer) == model.config.vocab_size == 2256


def test_a_target_that_cannot_be_written(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = mistake(capsys, "convert", str(folder), str(tmp_path / "file" / "new"))
    assert "cannot be written" in message
    assert "is a file): give another place." in message


def test_nothing_is_left_of_what_fails(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("keep")
    assert "not empty" in mistake(capsys, "convert", str(folder), str(tmp_path / "taken"))
    assert "no folder or file" in mistake(capsys, "convert", str(tmp_path / "nothing"), str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
