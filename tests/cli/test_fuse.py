"""`anyorder fuse` for one question."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from tests.cli.test_main import mistake

PHRASINGS = ["Once upon", "there was a", "Lily"]


def expected(folder: Path, **options: Any) -> Any:
    model, tokenizer = anyorder.load(folder)
    return anyorder.fuse(model, tokenizer, PHRASINGS, **options)


def test_an_answer_and_what_each_phrasing_got(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    out = expected(folder, suffix=" girl", max_new_tokens=6, attention_share=True)
    assert main(["fuse", str(folder), *PHRASINGS, "--suffix= girl", "--max_new_tokens", "6"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out.text}\n"
    shares = re.findall(r"^ *([\d.]+)%  (.*)$", captured.err, re.MULTILINE)
    assert [phrasing for _, phrasing in shares] == PHRASINGS
    assert [float(share) for share, _ in shares] == pytest.approx([100 * s for s in out.attention_share], abs=0.051)
    assert "6 tokens in" in captured.err


def test_options(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    options: dict[str, Any] = {
        "suffix": " girl", "prefix": "a", "separator": "\n", "positions": "right", "correction": "ape:0.9,0.8",
        "weights": [1.0, 2.0, 3.0], "keep": 2, "max_new_tokens": 6, "temperature": 0.9, "seed": 3,
    }  # fmt: skip
    out = expected(folder, attention_share=True, **options)
    words = [f"--{name}={value}" for name, value in (options | {"weights": "1,2,3"}).items()]
    assert main(["fuse", str(folder), *PHRASINGS, "--json", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == {
        "phrasings": PHRASINGS, "text": out.text, "token_ids": out.token_ids, "stopped": out.stopped[0],
        "attention_share": out.attention_share,
    }  # fmt: skip
    assert record["attention_share"][0] == 0


def test_a_network_answers_in_its_own_way(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    """Of an answer by diffusion no attention is told."""
    network, tokenizer = anyorder.load(folder)
    assert tokenizer is not None
    asked = {token_id for text in PHRASINGS for token_id in tokenizer(text)["input_ids"]}
    mask = next(token_id for token_id in range(100, 200) if token_id not in asked)
    diffuser = adapt(network, [diffusion(mask)])
    anyorder.save(diffuser, tokenizer, tmp_path / "diffuser")
    out = anyorder.fuse(diffuser, tokenizer, PHRASINGS, suffix=" girl", max_new_tokens=4)
    assert main(["fuse", str(tmp_path / "diffuser"), *PHRASINGS, "--suffix= girl", "--max_new_tokens=4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out.text}\n"
    assert "%" not in captured.err


def test_answers_in_any_order(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    network, tokenizer = anyorder.load(folder)
    able = adapt(network, [LEFT_TO_RIGHT, ANY_ORDER])
    anyorder.save(able, tokenizer, tmp_path / "able")
    words = ["fuse", str(tmp_path / "able"), *PHRASINGS, "--suffix= girl", "--max_new_tokens=4"]
    for order in ("random", "left-to-right"):
        out = anyorder.fuse(able, tokenizer, PHRASINGS, suffix=" girl", max_new_tokens=4, order=order)
        assert main([*words, "--order", order]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"{out.text}\n"
        assert ("%" in captured.err) == (order == "left-to-right")
    assert "order is 'sideways': give one of left-to-right" in mistake(capsys, *words, "--order", "sideways")


@pytest.mark.parametrize("method", ["logit-mean", "vote"])
def test_other_methods(capsys: pytest.CaptureFixture[str], folder: Path, method: str) -> None:
    out = expected(folder, suffix=" girl", method=method, max_new_tokens=4, weights="confidence")
    words = ["--suffix= girl", "--method", method, "--max_new_tokens=4", "--weights=confidence"]
    assert main(["fuse", str(folder), *PHRASINGS, *words]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out.text}\n"
    assert "%" not in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there are 0 phrasings: write at least one behind the model, each in quotes"),
        (["Once", "--method=avg"], "method is 'avg': choose one of attention, logit-mean"),
        (["Once", "--positions=left"], "positions is 'left': choose one of shared"),
        (["Once", "--correction=2"], "correction is '2': choose one of 1/N"),
        (["Once", "--weights=1,2"], "weights of the question are [1.0, 2.0]: give a number above 0 for each of its 1"),
        (["Once", ""], "phrasing 1 is '': write a question in it, or leave it out"),
        (["Once", "--keep=1"], "keep is 1 without weights"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], folder: Path, words: list[str], message: str) -> None:
    assert message in mistake(capsys, "fuse", str(folder), *words)


def test_a_wrong_method_is_told_before_the_network_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--method is 'avg'" in mistake(capsys, "fuse", "no-such-folder", "Once", "--method=avg")
