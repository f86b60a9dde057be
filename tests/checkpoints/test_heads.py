"""Fewer key-value heads: what is pooled, how, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyorder.checkpoints import convert, load_model, save_model
from anyorder.checkpoints.heads import share_heads
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama


def network(config: ModelConfig, kv_heads: int, **changes: object) -> Llama:
    """Random weights, biases and norms included."""
    model = Llama(config.replace(num_key_value_heads=kv_heads, **changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def repeated(model: Llama, heads: int) -> Llama:
    """The same network with each key-value head written out several times."""
    config = model.config
    more = Llama(config.replace(num_key_value_heads=heads)).eval()
    state = {}
    for name, weight in model.state_dict().items():
        if "k_proj" in name or "v_proj" in name:
            per_head = weight.unflatten(0, (config.num_key_value_heads, config.head_dim))
            weight = per_head.repeat_interleave(heads // config.num_key_value_heads, 0).flatten(0, 1)
        state[name] = weight
    more.load_state_dict(state)
    return more


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 1), (2, 1), (4, 4)])
def test_heads_that_are_the_same_already(tiny_config: ModelConfig, before: int, after: int, pooling: str) -> None:
    few = network(tiny_config, after, attention_bias=True, qk_norm="learned")
    many = repeated(few, before)
    shared = share_heads(many, after, pooling)
    assert shared.config == few.config
    token_ids = torch.randint(tiny_config.vocab_size, (2, 30))
    with torch.no_grad():
        expected = many(token_ids).logits
        assert (shared(token_ids).logits - expected).abs().max() < 1e-9 * expected.abs().max()


def pooled_slowly(weight: Tensor, head_dim: int, groups: int, pooling: str) -> Tensor:
    heads = [weight[start : start + head_dim] for start in range(0, len(weight), head_dim)]
    size = len(heads) // groups
    rows = []
    for group in range(groups):
        members = heads[group * size : (group + 1) * size]
        rows.append(members[0] if pooling == "first" else sum(members[1:], members[0]) / size)
    return torch.cat(rows)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling(tiny_config: ModelConfig, pooling: str, groups: int, dtype: torch.dtype) -> None:
    model = network(tiny_config, 4, attention_bias=True).to(dtype)
    shared = share_heads(model, groups, pooling).state_dict()
    for name, weight in model.state_dict().items():
        if "k_proj" in name or "v_proj" in name:
            expected = pooled_slowly(weight.float(), tiny_config.head_dim, groups, pooling).to(dtype)
            torch.testing.assert_close(shared[name], expected)
        else:
            assert torch.equal(shared[name], weight), name


def test_random_heads(tiny_config: ModelConfig) -> None:
    model = network(tiny_config, 4, attention_bias=True)
    one, same, other = (share_heads(model, 2, "random", seed) for seed in (1, 1, 2))
    layers = range(tiny_config.num_hidden_layers)
    drawn = [f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer in layers for kind in "kv"]
    for name in drawn:
        weight = one.get_parameter(name)
        assert torch.equal(weight, same.get_parameter(name))
        assert not torch.equal(weight, other.get_parameter(name))
        assert weight.std().item() == pytest.approx(tiny_config.initializer_range, rel=0.1)
    assert len({one.get_parameter(name).sum().item() for name in drawn}) == len(drawn)
    assert not one.get_parameter(drawn[0].replace("weight", "bias")).any()
    assert torch.equal(one.lm_head.weight, model.lm_head.weight)


def test_what_is_shared_with_the_network(tiny_config: ModelConfig) -> None:
    model = Llama(tiny_config.replace(num_key_value_heads=4, attention="MHA", tie_word_embeddings=True)).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    shared = share_heads(model, 1)
    assert shared.config.head_layout == "MQA"
    assert shared.lm_head.weight is shared.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert not shared.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kv_heads", [0, -2, 3, 8])
def test_numbers_that_do_not_divide(tiny_config: ModelConfig, tmp_path: Path, kv_heads: int) -> None:
    model = Llama(tiny_config.replace(num_key_value_heads=4))
    message = (
        rf"kv_heads is {kv_heads}, but the network's 4 key-value heads are pooled in equal groups: give one of 1, 2, 4"
    )
    with pytest.raises(UserError, match=message):
        share_heads(model, kv_heads)
    save_model(model, tmp_path / "source")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "source", tmp_path / "target", kv_heads=kv_heads)
    assert not (tmp_path / "target").exists()


def test_poolings_that_are_unknown(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pooling is 'median': give one of 'mean', 'first', 'random'"):
        share_heads(Llama(tiny_config), 1, "median")
    save_model(Llama(tiny_config), tmp_path / "source")
    with pytest.raises(UserError, match="pooling is 'median': give one of"):
        convert(tmp_path / "source", tmp_path / "target", kv_heads=1, pooling="median")


def test_weights_that_are_integers(tiny_config: ModelConfig) -> None:
    with pytest.raises(UserError, match="weights have been rounded to integers: share heads before that"):
        share_heads(to_int8(Llama(tiny_config)), 1)


@pytest.mark.parametrize("target", ["folder", "network.bin"])
def test_converting(tiny_config: ModelConfig, tmp_path: Path, target: str) -> None:
    model = Llama(tiny_config.replace(bos_token_id=1, eos_token_ids=(2,)))
    save_model(model, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / target, kv_heads=1, pooling="first")
    loaded = load_model(tmp_path / target, device="cpu")
    assert loaded.config.num_key_value_heads == 1
    expected = share_heads(model, 1, "first")
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
