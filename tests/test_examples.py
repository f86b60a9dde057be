"""Every script in `examples/` runs: each takes a checkpoint as its first argument and needs no other."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import anyorder
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from tests.modes.table import own_modes

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network with a byte-level tokenizer, saved as users have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Once upon a time there was a little girl named Lily."] * 2, trainer)
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rotary=Rotary(theta=10_000.0),
        bos_token_id=0,
        eos_token_ids=(1,),
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("examples") / "tiny"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    anyorder.save(Llama(config), fast, path)
    return path


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.stem)
def test_example_runs(
    script: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), str(checkpoint)])
    with own_modes():
        runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip(), "an example shows something"


def test_load_and_write(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["load_and_write.py", str(checkpoint), "Lily was"])
    runpy.run_path(str(EXAMPLES / "load_and_write.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out.startswith("Lily was")
    assert "64 tokens in 64 forward passes" in out
