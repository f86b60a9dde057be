"""The studies of experts and of long texts run, keep what they find, and count it rightly."""

from __future__ import annotations

import json
import math
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from anyorder.model.llama import Llama

SMALL = ["--vocabulary", "270", "--hidden", "16", "--heads", "2", "--length", "16", "--batch", "2", "--steps", "2"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "stories.txt"
    file.write_text("one day a cat found a needle in her room.\nthe dog was glad and they shared it.\n" * 60)
    return file


@pytest.fixture
def run(project_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: Path) -> Any:
    """Run a study with these options; return its module, its numbers and its picture."""
    monkeypatch.syspath_prepend(project_root / "benchmarks")

    def study(name: str, *options: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
        module = runpy.run_path(str(project_root / "benchmarks" / f"{name}.py"))
        found, picture = tmp_path / "found.json", tmp_path / "picture.png"
        arguments = [str(text), *SMALL, *options, "--output", str(found), "--picture", str(picture)]
        module["main"](arguments)
        first = found.read_text()
        module["main"]([*arguments, "--draw"])
        assert found.read_text() == first
        return module, json.loads(first), picture.read_bytes()

    return study


@pytest.mark.slow
def test_experts_against_dense(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layers", "1", "--width", "8", "--every", "1", "--seeds", "2", "--looked_at", "4", "--held_rows", "6"]
    module, found, picture = run("expert_study", *options)
    dense, experts = found["parameters"]["dense"], found["parameters"]["experts"]
    assert experts[1] - dense[1] == 8 * 16  # the router
    assert experts[0] - experts[1] == (8 - 2) * 3 * 8 * 16
    for name, runs in found["runs"].items():
        assert [of_seed["steps"] for of_seed in runs] == [[1, 2]] * 2, name
        for of_seed in runs:
            assert len(of_seed["held back"]) == 6
            assert 0 < of_seed["seconds"][0] < of_seed["seconds"][1]
        assert runs[0]["losses"] != runs[1]["losses"]
    for of_seed in found["runs"]["experts"]:
        assert [sum(load) for load in of_seed["load"]] == [pytest.approx(8)]
    assert picture.startswith(b"\x89PNG")
    assert "experts below dense, pairs of seeds: " in capsys.readouterr().out
    assert module["_crossing"]([10, 20, 30], [4.0, 3.0, 2.0], 2.5) == 25
    assert module["_crossing"]([10, 20, 30], [4.0, 3.0, 2.0], 1.0) == math.inf


@pytest.mark.slow
def test_long_texts(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layers", "4", "--chunk", "4", "--times", "2", "--bucket", "8", "--seeds", "2", "--held_rows", "3"]
    _, found, picture = run("long_context", *options, "--memory", "8", "32")
    assert found["parameters"]["chunks and NoPE"] == found["parameters"]["full attention, rotary"]
    for runs in found["runs"].values():
        assert [len(losses) for losses in runs] == [4, 4]  # of 31 positions
    full, mixed = (found["memory"][name] for name in ("full attention, rotary", "chunks and NoPE"))
    keys = 2 * 16 * 4  # bytes of a key and a value
    assert [line["cache"] for line in full] == [line["cache"] for line in mixed] == [4 * 9 * keys, 4 * 33 * keys]
    assert [line["seen"] for line in full] == [4 * 8 * keys, 4 * 32 * keys]
    assert [line["seen"] for line in mixed] == [(3 * 4 + 8) * keys, (3 * 4 + 32) * keys]
    assert all(line["peak"] > 0 for line in full + mixed)
    assert picture.startswith(b"\x89PNG")
    assert "nats a token by position; trained on 16 tokens" in capsys.readouterr().out


def test_losses_and_intervals(project_root: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Any) -> None:
    monkeypatch.syspath_prepend(project_root / "benchmarks")
    stories = runpy.run_path(str(project_root / "benchmarks" / "stories.py"))
    model = Llama(tiny_config).eval()
    rows = torch.randint(tiny_config.vocab_size, (5, 7))
    found = stories["losses"](model, rows, 2)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            model(rows).logits[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none"
        )
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
    values = [1.0, 2.0, 4.0]
    mean, reach = stories["interval"](values)
    assert (mean, reach) == (statistics.fmean(values), pytest.approx(4.303 * statistics.stdev(values) / 3**0.5))
    assert math.isnan(stories["interval"]([1.0]).reach)
