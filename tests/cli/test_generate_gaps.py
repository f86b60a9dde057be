"""`anyorder generate` in any order, with gaps and with drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.orders.by_name import order_named
from tests.cli.test_main import mistake


@pytest.fixture(scope="session")
def in_any_order(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `folder` with query rows."""
    model, tokenizer = anyorder.load(folder)
    path = tmp_path_factory.mktemp("any-order") / "tiny"
    anyorder.save(adapt(model, (LEFT_TO_RIGHT, ANY_ORDER)), tokenizer, path)
    return path


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--order random --seed 3", {"order": "random", "seed": 3}),
        ("--order groups:4 --temperature 1.5", {"order": "groups:4", "temperature": 1.5}),
        ("--order confidence", {"order": "confidence"}),
        ("--order random --draft 3", {"order": Speculative(order=order_named("random"), draft=3)}),  # type: ignore[arg-type]
        ("--draft 2", {"order": Speculative(order=order_named("any-order"), draft=2)}),  # type: ignore[arg-type]
        ("", {}),
    ],
)
def test_orders_by_name(
    in_any_order: Path, capsys: pytest.CaptureFixture[str], words: str, options: dict[str, Any]
) -> None:
    assert main(["generate", str(in_any_order), "Once upon", "--max_new_tokens", "8", *words.split()]) == 0
    model, tokenizer = anyorder.load(in_any_order)
    out = anyorder.generate(model, tokenizer, "Once upon", max_new_tokens=8, **options)
    printed = capsys.readouterr()
    assert printed.out == f"Once upon{out.text}\n"
    assert ("drafts accepted" in printed.err) == ("--draft" in words)


def test_gaps_are_filled_where_they_stand(in_any_order: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(in_any_order), "Once [...] a [...] time", "--order", "random", "--gap_tokens", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    model, tokenizer = anyorder.load(in_any_order)
    out = anyorder.generate(model, tokenizer, "Once [...] a [...] time", order="random", gap_tokens=2)
    assert isinstance(out.text, str)
    one, other = out.text.split("[...]")
    assert printed == f"Once{one} a{other} time\n"
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["full_text"]) == (out.text, printed.removesuffix("\n"))


def test_a_gap_on_a_terminal_is_not_streamed(
    in_any_order: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    words = ["generate", str(in_any_order), "Once [...] time", "--order", "random", "--gap_tokens", "1,2,3"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Once")
    assert printed.endswith(" time\n")


def test_a_gap_is_never_text(in_any_order: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an order the mode that fills gaps is taken; where none does, a sentence tells what would."""
    words = ["Once [...] time", "--max_new_tokens", "3"]
    assert main(["generate", str(in_any_order), *words]) == 0
    filled = capsys.readouterr().out
    assert filled.endswith(" time\n")
    assert main(["generate", str(in_any_order), *words, "--order", "any-order"]) == 0
    assert capsys.readouterr().out == filled
    assert mistake(capsys, "generate", str(in_any_order), *words, "--order", "left-to-right") == (
        "--order is 'left-to-right', which fills no gap, and prompt 0 has one ([...], or -1 among token ids): leave "
        "out the order, or give 'any-order'."
    )
    assert "alone, which fills none: load a network that writes in any order or by" in mistake(
        capsys, "generate", str(folder), *words
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--order random --gap_tokens two", "--gap_tokens has 'two': give whole numbers, with commas between."),
        ("--order random --gap_tokens 4", "gap_tokens is 4, but no prompt has a gap: write [...] where tokens are"),
        ("--draft 1", "draft is 1: give a number of groups above 1, or leave speculation out."),
        ("--order confidence --draft 3", "the order of a draft is MostConfident, known only as it is written"),
        ("--draft 3 --steps 4", "draft is 3 beside options of diffusion: leave out one of them."),
        (
            "--order left-to-right --draft 3",
            "--order is 'left-to-right', which is of another mode than any-order: give",
        ),
    ],
)
def test_mistakes(in_any_order: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert message in mistake(capsys, "generate", str(in_any_order), "Once upon", *words.split())
