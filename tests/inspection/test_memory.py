"""Computed memory is that of real tensors: of networks, of rounded ones, and of what an optimizer keeps."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.inspection.memory import cache_bytes, lora_bytes, training_bytes, weight_bytes
from anyorder.model.config import ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.model.rope import Rotary
from anyorder.objectives import Autoregressive, Batch, summed_loss
from anyorder.training.runs import _with_lora

BOOL = st.booleans()
FEW = settings(max_examples=12, deadline=None)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.sampled_from([1, 2, 4]))
    shared = draw(st.sampled_from([number for number in (1, 2, 4) if heads % number == 0]))
    return ModelConfig(
        vocab_size=draw(st.integers(3, 40)),
        hidden_size=8 * heads,
        intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=shared,
        rotary=Rotary(theta=10_000.0),
        qk_norm=draw(st.sampled_from(["none", "learned"])),
        attention_bias=draw(BOOL),
        mlp_bias=draw(BOOL),
        tie_word_embeddings=draw(BOOL),
        modes=(LEFT_TO_RIGHT, ANY_ORDER) if draw(BOOL) else (LEFT_TO_RIGHT,),
    )


def total(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those that share memory once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@FEW
@given(configs())
def test_bytes_are_those_of_the_tensors(config: ModelConfig) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = Llama(config).to(dtype)
        name = str(dtype).removeprefix("torch.")
        assert weight_bytes(config, name) == total(model.parameters())
        rounded = to_int8(model)
        assert weight_bytes(config, "int8", beside=name) == total([*rounded.parameters(), *rounded.buffers()])


@FEW
@given(configs())
def test_the_bytes_of_training_are_weights_gradients_and_moments(config: ModelConfig) -> None:
    model = Llama(config)
    assert training_bytes(config) == adamw_bytes(model)


@FEW
@given(configs(), st.integers(1, 3))
def test_the_bytes_of_adapters_are_those_of_peft(config: ModelConfig, rank: int) -> None:
    assert lora_bytes(config, rank) == adamw_bytes(_with_lora(AnyOrderForCausalLM.of(Llama(config)), rank, seed=0))


def adamw_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights, and of gradients and moments where there are some, after a step."""
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return total(model.parameters()) + total([weight.grad for weight in trained if weight.grad is not None] + moments)


def test_the_bytes_of_a_cache(tiny_config: ModelConfig) -> None:
    cache = Llama(tiny_config).to(torch.bfloat16).new_cache(1, 10)
    kept = total([tensor for layer in cache.layers for tensor in (layer.keys, layer.values)])
    assert kept == 11 * cache_bytes(tiny_config, torch.bfloat16)  # one slot is for padding


def test_gradients_of_a_real_step_are_as_large_as_the_weights(tiny_config: ModelConfig) -> None:
    model = Llama(tiny_config)
    inputs = Autoregressive().inputs(Batch.of([[1, 2, 3]]), 0)
    summed_loss(model, inputs).backward()
    assert total(weight.grad for weight in model.parameters() if weight.grad is not None) == total(model.parameters())


def test_an_unknown_dtype_is_refused(tiny_config: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"^dtype is 'int4': give one of 'float64', .*, 'int8'\.$"):
        weight_bytes(tiny_config, "int4")
    with pytest.raises(UserError, match=r"^beside is 'int8': give one of 'float64', .*'float16'\.$"):
        weight_bytes(tiny_config, "int8", beside="int8")
