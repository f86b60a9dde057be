"""What the pages of this folder show can be done, and what they quote is said by the program."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.mask_token import with_mask_token
from anyorder.cli import main
from anyorder.data import train_tokenizer
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.model.rope import Rotary
from tests.pages import blocks_of

ROOT = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.fixture
def beside_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders `demo` and `trained`, with networks of the demo's shape that have learnt nothing."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer(['The value of the "if" statement, object.__class__(self, other), is used for:'], 300)
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, rotary=Rotary(theta=10_000.0), tie_word_embeddings=True,
    )  # fmt: skip
    anyorder.save(Llama(config), tokenizer, "demo")
    model, mask_token_id = with_mask_token(Llama(config), tokenizer, "<|mask|>")
    anyorder.save(adapt(model, (LEFT_TO_RIGHT, ANY_ORDER, diffusion(mask_token_id))), tokenizer, "trained")


def run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Python blocks print what stands below them; commands succeed, but for trainings."""
    names: dict[str, object] = {}
    script = Path("block.py")
    for block in blocks_of(page(name)):
        if block.language == "python":
            script.write_text(block.code, encoding="utf-8")
            names = runpy.run_path(str(script), init_globals=names)
            assert capsys.readouterr().out == (block.printed or ""), block.code
        for line in block.code.splitlines() if block.language == "console" else ():
            program, *words = shlex.split(line.removeprefix("$ "))
            assert program == "anyorder", line
            assert main(words) == 0, line
            capsys.readouterr()


@pytest.mark.usefixtures("beside_a_demo")
@pytest.mark.parametrize("name", ["tutorial.md", "hardware.md", "models.md"])
def test_blocks_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name, capsys)


FOREIGN = (
    "ModuleNotFoundError",
    "anyorder: command not found",
    "no Python >=",
    "CUDA out of memory",
    "nan",
    "anyorder",
)
"""What other programs say."""


def test_messages_that_are_quoted_are_those_of_the_program() -> None:
    sources = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "src").rglob("*.py")))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)  # a message over several lines
    symptoms = re.findall(r"^\| (.*?) \|", page("troubleshooting.md"), re.MULTILINE)
    quoted = [quote for symptom in symptoms for quote in re.findall(r"`([^`]+)`", symptom)]
    own = [quote for quote in quoted if not quote.startswith(FOREIGN) and quote != "anyorder"]
    parts = [part.strip(" :,()") for quote in own for part in quote.split("...")]
    assert len(parts) > 40
    assert [part for part in parts if part not in said] == []


def test_the_glossary_is_in_alphabetical_order() -> None:
    words = [word.lower() for word in re.findall(r"^### (.+)$", page("glossary.md"), re.MULTILINE)]
    assert len(words) > 30
    assert words == sorted(words)
