"""`anyorder evaluate likelihood`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.evaluation.order_search import by_likelihood
from anyorder.evaluation.texts import cut_texts, gap_marks
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.orders.kinds import Random
from tests.cli.test_main import mistake


@pytest.fixture(scope="module")
def versatile(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `folder`, said to write in every way."""
    model, tokenizer = anyorder.load(folder)
    path = tmp_path_factory.mktemp("versatile")
    text = "Once upon a time there was a little girl named Lily. " * 4
    (path / "data.txt").write_text(text)
    assert tokenizer is not None
    mask = max(set(range(model.config.vocab_size)) - set(tokenizer(text)["input_ids"]))
    anyorder.save(adapt(model, (LEFT_TO_RIGHT, ANY_ORDER, diffusion(mask))), tokenizer, path / "tiny")
    return path


def test_orders_are_compared(versatile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "likelihood", str(versatile / "tiny"), str(versatile / "data.txt")]
    options = ["--length", "8", "--texts", "5", "--draws", "2", "--json"]
    assert main([*words, *options, "--orders", "random", "--orders", "left-to-right", "--orders", "diffusion"]) == 0
    records = {record["name"]: record for record in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(records) == {"random", "left-to-right", "diffusion"}
    model, tokenizer = anyorder.load(versatile / "tiny")
    texts = cut_texts(versatile / "data.txt", tokenizer, model.config, length=8, most=5)
    [expected] = by_likelihood(model, texts, {"random": Random()}, draws=2)
    assert records["random"]["per_token"] == pytest.approx(expected.per_token)
    assert len(records["random"]["texts"]) == 5
    assert {name for name, record in records.items() if record["bound"]} == {"diffusion"}

    assert main([*words, "--length", "8", "--texts", "5", "--gap", "3"]) == 0
    printed = capsys.readouterr()
    for name in ("left-to-right", "any-order", "right-to-left", "random", "groups:4", "diffusion"):
        [line] = [line for line in printed.out.splitlines() if line.startswith(f"{name} ")]
        assert line.count("≤") == (2 if name == "diffusion" else 0)
    assert "≤: a bound, estimated" in printed.err
    assert "5 texts of 8 tokens, 3 of each scored" in printed.err
    [both] = by_likelihood(model, texts, {"random": Random()}, [gap_marks(8, 3)] * 5, draws=4)
    assert f"{-both.per_token:.3f}" in printed.out


def test_mistakes(versatile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", "likelihood", str(versatile / "tiny"), str(versatile / "data.txt"))
    assert "gap is 127 in texts of 128 tokens" in mistake(capsys, *words, "--gap", "127")
    assert "--orders is 'sideways'" in mistake(capsys, *words, "--orders", "sideways", "--length", "8")


def test_exact_likelihoods_are_not_marked(versatile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "likelihood", str(versatile / "tiny"), str(versatile / "data.txt"), "--length", "8"]
    assert main([*words, "--texts", "2", "--orders", "random,left-to-right"]) == 0
    printed = capsys.readouterr()
    assert "≤" not in printed.out + printed.err
