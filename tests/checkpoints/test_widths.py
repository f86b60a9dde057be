"""Wider networks that compute the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from anyorder.checkpoints import convert, load_model, save_model
from anyorder.checkpoints.widths import to_wider
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from tests.checkpoints.test_heads import network


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", ["none", "learned"])
def test_computes_the_same(tiny_config: ModelConfig, times: int, tied: bool, qk_norm: str) -> None:
    model = network(
        tiny_config, 2, tie_word_embeddings=tied, qk_norm=qk_norm, attention_bias=True, mlp_bias=True,
        attention_output_bias=True,
    )  # fmt: skip
    wide = to_wider(model, times)
    assert wide.config.hidden_size == times * tiny_config.hidden_size
    assert wide.config.head_dim == tiny_config.head_dim
    token_ids = torch.randint(tiny_config.vocab_size, (2, 20))
    with torch.no_grad():
        expected = model(token_ids).logits
        assert (wide(token_ids).logits - expected).abs().max() < 1e-9 * expected.abs().max()


def test_copies_move_apart(tiny_config: ModelConfig) -> None:
    """Copies with equal gradients would stay copies for ever. The head reads all copies alike, so the first layer."""
    wide = to_wider(Llama(tiny_config.replace(tie_word_embeddings=True)), 2)
    wide(torch.randint(tiny_config.vocab_size, (2, 20))).logits.logsumexp(-1).sum().backward()
    for name, parameter in wide.model.layers[0].named_parameters():
        assert parameter.grad is not None
        first, second = parameter.grad.chunk(2)
        assert (first - second).norm() > 0.01 * first.norm(), name


def test_the_seed_decides(tiny_config: ModelConfig) -> None:
    model = Llama(tiny_config)
    weights = [to_wider(model, 2, seed).state_dict()["model.layers.0.mlp.up_proj.weight"] for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_convert_widens(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = Llama(tiny_config).eval()
    save_model(model, tmp_path / "small")
    convert(tmp_path / "small", tmp_path / "wide", widen=2)
    token_ids = torch.randint(tiny_config.vocab_size, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(tmp_path / "wide")(token_ids).logits, model(token_ids).logits, atol=1e-4, rtol=1e-4
        )


def test_refuses(tiny_config: ModelConfig, tmp_path: Path) -> None:
    save_model(Llama(tiny_config), tmp_path / "small")
    with pytest.raises(UserError, match="widen is 1: give a whole number from 2 to 64"):
        convert(tmp_path / "small", tmp_path / "wide", widen=1)
    assert not (tmp_path / "wide").exists()
    any_order = Llama(tiny_config.replace(modes=(*tiny_config.modes, ANY_ORDER)))
    with pytest.raises(UserError, match="writes any-order: widen it before that training"):
        to_wider(any_order, 2)
    mixed = tuple(dataclasses.replace(layer, experts=True) for layer in tiny_config.layers)
    experts = Llama(tiny_config.replace(experts=Experts(number=2, chosen=1, width=8), layers=mixed))
    with pytest.raises(UserError, match="the network has experts: give one without"):
        to_wider(experts, 2)
