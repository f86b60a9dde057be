"""Training on samples longer than those of the checkpoint, with scaled rotary embeddings that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import anyorder
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.rope import DynamicRotary, LinearRotary, Llama3Rotary, Rotary, YarnRotary
from anyorder.training import runs
from anyorder.training.longer import extended
from tests.training.test_interrupted import settings


def config(rotary: Rotary, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    return ModelConfig(**sizes, num_attention_heads=2, max_position_embeddings=64, rotary=rotary, **changes)


def test_factors() -> None:
    plain = config(Rotary(theta=1e4))
    assert extended(plain, "linear", 160).rotary == LinearRotary(theta=1e4, factor=2.5)
    assert extended(plain, "yarn", 128).rotary == YarnRotary(
        theta=1e4, factor=2.0, original_max_position_embeddings=64
    )  # fmt: skip
    assert extended(plain, "llama3", 512).rotary == Llama3Rotary(
        theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    for scaling in ("linear", "yarn", "llama3"):
        once = extended(plain, scaling, 1000)
        assert once.context_length == once.max_position_embeddings == 1000
        # In two steps as in one.
        assert extended(extended(plain, scaling, 100), scaling, 1000).rotary == once.rotary


def test_what_cannot_be_scaled() -> None:
    with pytest.raises(UserError, match=r"^its embedding is LinearRotary already: give that kind, or a shorter length"):
        extended(config(LinearRotary(theta=1e4, factor=2.0)), "yarn", 128)
    with pytest.raises(UserError, match="is DynamicRotary already"):
        extended(config(DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=32)), "linear", 128)
    own = LayerKind(rotary=YarnRotary(theta=1e3, factor=1.5, original_max_position_embeddings=64))
    layers = (LayerKind(), own)
    longer = extended(config(Rotary(theta=1e4), layers=layers), "linear", 80)
    assert longer.context_length == 80


@pytest.mark.parametrize("scaling", ["linear", "yarn", "llama3"])
def test_transformers_reads_what_was_trained_on_longer_samples(tmp_path: Path, scaling: str) -> None:
    runs.run(settings(tmp_path, steps=1, save_every=0))
    chosen = settings(
        tmp_path, init=str(tmp_path / "out"), output=tmp_path / scaling, length=48, rope_scaling=scaling, steps=1
    )
    runs.run(chosen)
    model, _ = anyorder.load(tmp_path / scaling, device="cpu")
    assert model.config.context_length == 48
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / scaling, dtype=torch.float32).eval()
    assert theirs.config.rope_parameters["rope_type"] == scaling
    assert theirs.config.rope_parameters["factor"] == 3
    ids = torch.randint(5, 280, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(ids).logits, model(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_lengths_that_do_not_fit_the_network(tmp_path: Path) -> None:
    runs.run(settings(tmp_path, steps=1, save_every=0))
    init = str(tmp_path / "out")
    with pytest.raises(UserError) as error:
        runs.run(settings(tmp_path, init=init, output=tmp_path / "on", length=48))
    assert str(error.value) == (
        f"length is 48, but the network in {init!r} was trained on 16 tokens: give at most that, or rope_scaling yarn, "
        "by which it learns longer texts."
    )
    with pytest.raises(UserError) as error:
        runs.run(settings(tmp_path, init=init, output=tmp_path / "on", length=16, rope_scaling="yarn"))
    assert str(error.value) == (
        f"rope_scaling is 'yarn', but the network in {init!r} was trained on 16 tokens, and length is 16: leave it out."
    )
    with pytest.raises(UserError, match=r"^rope_scaling is 'yarn': without init, a network is made for this length"):
        settings(tmp_path, rope_scaling="yarn")
    runs.run(settings(tmp_path, init=init, output=tmp_path / "yarn", length=48, rope_scaling="yarn", steps=1))
    with pytest.raises(UserError, match=r"^rope_scaling is 'linear' for the network in '.*': its embedding is YarnRot"):
        runs.run(
            settings(tmp_path, init=str(tmp_path / "yarn"), output=tmp_path / "on", length=64, rope_scaling="linear")
        )
    assert not (tmp_path / "on").exists()
