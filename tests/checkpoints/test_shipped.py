"""The network that the package ships."""

from __future__ import annotations

import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import anyorder
from anyorder.checkpoints.hub import SHIPPED, fetch
from anyorder.cli import main
from anyorder.errors import UserError

MOST_BYTES = 6_000_000


def test_its_size() -> None:
    files = list(SHIPPED["stories"].iterdir())
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in files)  # others may read what is installed


@pytest.mark.parametrize("order", ["left-to-right", "random", "groups:2", "confidence", "diffusion", "blocks"])
def test_writes_in_every_way(order: str) -> None:
    model, tokenizer = anyorder.load("stories")
    out = anyorder.generate(model, tokenizer, "Once upon a time", order=order, max_new_tokens=16)
    assert len(out.token_ids) <= 16
    assert out.token_ids
    assert model.config.mode("diffusion").mask_token_id not in out.token_ids


def test_fills_a_gap_and_fuses() -> None:
    model, tokenizer = anyorder.load("stories")
    filled = anyorder.generate(
        model, tokenizer, "once upon a [...], there was a girl.", order="any-order", gap_tokens=4
    )
    assert str(filled.full_text).startswith("once upon a")
    assert str(filled.full_text).endswith(", there was a girl.")
    assert anyorder.fuse(model, tokenizer, ["tom was sad.", "tom cried."], suffix=" then", max_new_tokens=4).token_ids


def test_it_has_learnt() -> None:
    """Stories are more probable than their words in another order, in the mean over the ways that have a likelihood."""
    model, tokenizer = anyorder.load("stories", dtype="float32")
    assert tokenizer is not None
    text = "once upon a time, there was a little girl named lily. she loved to play with her toys."
    words = text.split()
    mixed = " ".join(words[::2] + words[1::2])
    ids = [tokenizer(each)["input_ids"] for each in (text, mixed)]
    lengths = [len(each) for each in ids]
    for plan in (anyorder.GroupPlan.sequential(lengths, [1, 1]), anyorder.GroupPlan.random(lengths, [1, 1])):
        known, unknown = anyorder.log_prob(model, ids, plan).per_token.tolist()
        assert known > unknown + 0.3


def test_the_bf16_weights_are_finite_and_used() -> None:
    model, tokenizer = anyorder.load("stories")
    assert tokenizer is not None
    assert model.dtype == torch.bfloat16
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert len(tokenizer) == model.config.vocab_size
    assert {mode.name for mode in model.config.modes} == {"left-to-right", "any-order", "diffusion", "blocks"}


def test_a_folder_here_wins_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch("stories") == SHIPPED["stories"]
    assert fetch(Path("stories")) == Path("stories")  # a path is no name
    (tmp_path / "stories").mkdir()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="'stories'"):
        anyorder.load("stories")
    assert "'stories' is a folder or file here, which is read instead of the network that anyorder ships" in caplog.text


def test_no_revision() -> None:
    with pytest.raises(UserError, match="revision is 'main', but 'stories' is no model on the hub"):
        anyorder.load("stories", revision="main")


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "stories", "Once upon a time", "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time")


@pytest.mark.slow
def test_the_wheel_contains_it(project_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=project_root, check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/shipped/stories/" in name}
    assert names == {file.name for file in SHIPPED["stories"].iterdir()}
