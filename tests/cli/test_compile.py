"""`anyorder compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.model import packages
from anyorder.model.block import Block
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.model.packages import Form, HeadFunction, LayerFunction
from tests.cli.test_main import mistake
from tests.model.networks import network


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network, and an empty place for packages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_LOADED", {})
    model = adapt(network(), (LEFT_TO_RIGHT, ANY_ORDER, diffusion(30)), seed=0)
    anyorder.save(model, None, tmp_path / "network")
    return tmp_path / "network"


def test_each_form_of_each_mode_is_made_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the compiler: files in its place, and layers that run as they are."""
    made: list[Form] = []

    def make(layer: object, config: object, form: Form, dtype: torch.dtype, place: Path, threads: int) -> None:
        made.append(form)
        (place / packages.FILE).write_bytes(repr(form).encode())

    def make_head(head: object, width: int, dtype: torch.dtype, place: Path, threads: int) -> None:
        (place / packages.FILE).write_bytes(b"head")

    def package(file: Path) -> Any:
        if file.read_bytes() == b"head":
            return HeadFunction(network().lm_head)
        form = next(form for form in made if repr(form).encode() == file.read_bytes())
        function = LayerFunction(cast(Block, network().model.layers[0]), form)
        return lambda weights, rows_BRE, *of_view: function(weights, rows_BRE, of_view)

    monkeypatch.setattr(packages, "make", make)
    monkeypatch.setattr(packages, "make_head", make_head)
    monkeypatch.setattr(packages, "Package", package)
    assert main(["compile", str(folder), "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert f"{len(made) + 1} packages were made in" in told
    assert str(packages.folder_of_packages()) in told
    assert len(set(made)) == len(made) == len(packages.packages_kept()) - 1  # and the head
    assert (
        {form.biased for form in made}
        == {form.cached for form in made}
        == {form.single_sample for form in made}
        == {True, False}
    )
    assert main(["compile", str(folder), "--device", "cpu"]) == 0
    assert "all packages are there already; they are kept in" in capsys.readouterr().err

    def missing(layer: object, config: object, form: Form, *others: object) -> None:
        raise AssertionError(form)

    model = anyorder.load(folder, device="cpu")[0]
    monkeypatch.setattr(packages, "make", missing)
    for order in ("left-to-right", "random", "groups:4", "diffusion"):
        for prompts in ([[5, 6, 7]], [[5, 6, 7], [8]]):
            anyorder.generate(model, None, prompts, order=order, max_new_tokens=7, compile=order != "left-to-right")


def test_a_network_without_packages_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", str(folder), "--device", "cpu", "--attention", "eager"]
    message = mistake(capsys, *words)
    assert "layers of this network are not compiled on cpu with attention 'eager'" in message


def test_what_could_not_be_made_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr(packages, "make", fail)
    monkeypatch.setattr(packages, "make_head", fail)
    assert main(["compile", str(folder), "--device", "cpu"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "packages could not be made: see the warnings, and try again." in message
