"""The network against transformers' Llama, float32, on tiny random weights.

Tolerance: 1e-5 of the largest logit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary, LinearRotary, Llama3Rotary, Rotary, YarnRotary
from anyorder.visibility import causal, groups
from tests.attention.fakes import install_flash

TRAINED = 32
"""Tokens."""

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.3,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "GQA": {},
    "MHA": {"num_key_value_heads": 4},
    "MQA": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "rms_norm_eps": {"rms_norm_eps": 0.1},
}

BANDS: dict[str, Any] = {
    "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip

STRETCH: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 16}

ROTARY: dict[str, tuple[Rotary, dict[str, Any]]] = {
    "default": (Rotary(theta=500.0), {"rope_type": "default", "rope_theta": 500.0}),
    "linear": (LinearRotary(theta=500.0, factor=3.0), {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}),
    "dynamic": (
        DynamicRotary(theta=500.0, factor=2.0, original_max_position_embeddings=TRAINED),
        {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    ),
    "llama3": (Llama3Rotary(theta=500.0, **BANDS), {"rope_type": "llama3", "rope_theta": 500.0, **BANDS}),
    "yarn": (YarnRotary(theta=500.0, **STRETCH), {"rope_type": "yarn", "rope_theta": 500.0, **STRETCH}),
}


def twins(variant: str = "GQA", rotary: str = "default", backend: str = "auto") -> tuple[Llama, LlamaForCausalLM]:
    """The same weights in both; norms and biases are random too, or a forgotten one would not show."""
    ours, theirs = ROTARY[rotary]
    shape = SHAPE | {"rms_norm_eps": 1e-5} | VARIANTS[variant]
    reference = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=theirs)).eval()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    config = ModelConfig(**shape, attention_output_bias=shape.get("attention_bias", False), rotary=ours)
    model = Llama(config, backend).eval()
    model.load_state_dict(reference.state_dict())
    return model, reference


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.detach().abs().max())))


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (batch, length))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("rotary", ROTARY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, rotary: str, backend: str) -> None:
    """Up to twice the trained length."""
    model, reference = twins(variant, rotary, backend)
    for length in (1, TRAINED, 2 * TRAINED):
        ids = random_ids(2, length)
        with torch.no_grad():
            assert_near(model(ids).logits, reference(ids).logits)


def test_norms_of_heads() -> None:
    """Qwen3 is a Llama with learned norms on query and key heads."""
    shape = SHAPE | {"head_dim": 12, "rms_norm_eps": 1e-5}
    reference = Qwen3ForCausalLM(Qwen3Config(**shape, rope_parameters=ROTARY["default"][1])).eval()
    model = Llama(ModelConfig(**shape, rotary=ROTARY["default"][0], qk_norm="learned")).eval()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "norm" in name:
                weight.normal_(1.0, 0.3)
        model.load_state_dict(reference.state_dict())
        ids = random_ids(2, TRAINED)
        assert_near(model(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("variant", ["GQA", "MHA", "MQA"])
def test_logits_by_flash(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash(monkeypatch)
    model, reference = twins(variant, backend="flash_attention_2")
    ids = random_ids(2, 20)
    assert_near(model(ids).logits, reference(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["GQA", "MQA"])
def test_logits_by_flex(variant: str) -> None:
    model, reference = twins(variant, backend="flex_attention")
    ids = random_ids(2, TRAINED)
    with torch.no_grad():
        assert_near(model(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("rotary", ["default", "linear", "llama3"])
def test_positions_far_away(rotary: str) -> None:
    """Where float32 angles are off by much, transformers' can be had as an option."""
    model, reference = twins(rotary=rotary)
    float32_angles = dataclasses.replace(ROTARY[rotary][0], float32_angles=True)
    parity = Llama(model.config.replace(rotary=float32_angles)).eval()
    parity.load_state_dict(model.state_dict())
    ids, position = random_ids(1, 9), torch.arange(9).unsqueeze(0) + 50_000
    with torch.no_grad():
        expected = reference(ids, position_ids=position).logits
        ours = parity.logits(parity.hidden(ids, parity.prepare(causal(), {"position": position})))
        assert_near(ours, expected)
        # Only distances count, so the exact angles give at 50,000 what they give at 0.
        exact = model.logits(model.hidden(ids, model.prepare(causal(), {"position": position})))
        assert_near(exact, model(ids).logits)


@pytest.mark.parametrize("left", [False, True])
def test_padding(left: bool) -> None:
    model, reference = twins()
    ids, mask = random_ids(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[1, slice(0, 5) if left else slice(7, 12)] = 0
    with torch.no_grad():
        ours, theirs = model(ids, attention_mask=mask).logits, reference(ids, attention_mask=mask).logits
    assert_near(ours[mask.bool()], theirs[mask.bool()])


@pytest.mark.parametrize("num_items_in_batch", [None, 7, torch.tensor(40)])
@pytest.mark.parametrize("variant", ["biases", "tied"])
def test_loss_and_gradients(variant: str, num_items_in_batch: int | Tensor | None) -> None:
    model, reference = twins(variant)
    ids = random_ids(3, 10)
    mask = (torch.arange(10) < torch.tensor([[10], [7], [3]])).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :4] = -100
    ours = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=num_items_in_batch)
    extra = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
    theirs = reference(ids, attention_mask=mask, labels=labels, **extra)
    assert ours.loss is not None
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
    ours.loss.backward()
    theirs.loss.backward()
    gradients = {name: weight.grad for name, weight in reference.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        expected = gradients[name]
        assert weight.grad is not None
        assert expected is not None
        assert_near(weight.grad, expected)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_two_streams(backend: str) -> None:
    """An untouched causal Llama on `[tokens ; query rows]`, with a mask that is written out, does the same."""
    model, reference = twins(backend=backend)
    length = 10
    content, queries = random_ids(2, length), random_ids(2, length)
    rank = torch.stack((torch.randperm(length) // 2, torch.randint(0, 4, (length,))))
    ids, position = torch.cat((content, queries), 1), torch.arange(length).repeat(2).expand(2, -1)

    seen = torch.zeros(2, 1, 2 * length, 2 * length, dtype=torch.bool)
    seen[:, 0, :length, :length] = rank.unsqueeze(1) <= rank.unsqueeze(2)
    seen[:, 0, length:, :length] = rank.unsqueeze(1) < rank.unsqueeze(2)
    labels = {
        "position": position,
        "rank": rank.repeat(1, 2),
        "stream": (torch.arange(2 * length) >= length).long().expand(2, -1),
    }
    with torch.no_grad():
        theirs = reference(ids, attention_mask=seen, position_ids=position, use_cache=False).logits
        ours = model.logits(model.hidden(ids, model.prepare(groups(), labels, n_keys=length)))
    assert bool((~seen.any(-1)).any())  # the lowest group's query rows see nothing
    assert_near(ours, theirs)


def test_the_names_of_the_weights_are_the_same() -> None:
    for variant in VARIANTS:
        model, reference = twins(variant)
        shapes = {name: weight.shape for name, weight in reference.state_dict().items()}
        assert {name: weight.shape for name, weight in model.state_dict().items()} == shapes


def test_new_weights_are_drawn_likewise() -> None:
    """Same spread, biases zero, norms one."""
    model, _ = twins("biases")
    model.reset_parameters()
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert bool((weight == 1).all())
        elif name.endswith("bias"):
            assert not weight.any()
        else:
            assert abs(float(weight.detach().std()) - SHAPE["initializer_range"]) < 0.05
            assert abs(float(weight.detach().mean())) < 0.05
