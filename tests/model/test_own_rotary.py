"""Several rotary embeddings in one network, by layer: every way of reading, and the way to the disk and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import anyorder
from anyorder import AnyOrderConfig
from anyorder.checkpoints import load_model, save_model
from anyorder.checkpoints.config_json import config_from_json, config_to_json, our_config_to_json
from anyorder.cli._describe import layers
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.model.rope import DynamicRotary, LinearRotary, Rotary, YarnRotary
from anyorder.model.step import one_token
from anyorder.orders.plan import GroupPlan
from anyorder.visibility import causal
from tests.model.networks import FAST, SLOW, network, random_ids
from tests.model.oracle import narrowed, oracle_logits

YARN = YarnRotary(theta=100.0, factor=4.0, original_max_position_embeddings=16)
MODES = (LEFT_TO_RIGHT, ANY_ORDER, diffusion(30))


def several(**changes: Any) -> Llama:
    """A network with three rotary embeddings, and a layer with none."""
    return network("own rotary", **{"modes": MODES, **changes})


@pytest.mark.usefixtures("float64")
def test_each_layer_turns_by_its_own() -> None:
    model = several()
    (ids,) = random_ids(12)
    expected = oracle_logits(model, ids, range(12), lambda kind, q, k: k <= q and narrowed(kind, q, k), 12)
    logits = model(torch.tensor([ids])).logits[0]
    assert (logits - expected).abs().max() < 1e-9 * expected.abs().max()
    other = Llama(model.config.replace(layers=(LayerKind(),) * 4))
    other.load_state_dict(model.state_dict())
    assert (other(torch.tensor([ids])).logits[0] - expected).abs().max() > 1e-3


@pytest.mark.usefixtures("float64")
def test_cached_compiled_and_uncached_are_equal() -> None:
    model = several()
    ids = torch.tensor(random_ids(12, 12))
    expected = model(ids).logits
    cache = model.new_cache(2, 16)
    step = torch.compile(one_token, backend="eager", fullgraph=True)  # one graph: no decision depends on data
    with torch.no_grad():
        for at in range(12):
            position = torch.full((2, 1), at)
            run = step if at > 2 else one_token
            logits = run(model, ids[:, at : at + 1], position, torch.ones(2, 1, dtype=torch.bool), cache, 16)
            assert (logits - expected[:, at]).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.usefixtures("float64")
def test_two_streams_and_diffusion(tmp_path: Path) -> None:
    model = several()
    (ids,) = random_ids(8)
    plan = GroupPlan.from_group_ids([[3, 0, 0, 2, 1, 1, 4, 2]])
    scored = anyorder.log_prob(model, torch.tensor([ids]), plan)
    written = anyorder.generate(model, None, [5, 6, 7], order="left-to-right", max_new_tokens=6)
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved", device="cpu")
    assert loaded.config == model.config
    assert torch.equal(anyorder.log_prob(loaded, torch.tensor([ids]), plan).total, scored.total)
    for order in ("left-to-right", "random", "diffusion"):
        ours, again = (
            anyorder.generate(each, None, [5, 6, 7], order=order, max_new_tokens=6) for each in (model, loaded)
        )
        assert ours.token_ids == again.token_ids
    slow = anyorder.generate(model, None, [5, 6, 7], order="left-to-right", max_new_tokens=6, use_cache=False)
    assert written.token_ids == slow.token_ids


def test_transformers_with_angles_exchanged_by_layer() -> None:
    """transformers' Llama, each of whose layers is handed other angles."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    twin = LlamaForCausalLM(config).eval()
    bases = [100.0, 10_000.0, 7.0]
    for layer, base in zip(twin.model.layers, bases, strict=True):
        own = LlamaConfig(**{**config.to_dict(), "rope_parameters": {"rope_type": "default", "rope_theta": base}})
        angles = LlamaRotaryEmbedding(own)

        def exchanged(module: Any, args: Any, kwargs: Any, angles: Any = angles) -> Any:
            return args, kwargs | {"position_embeddings": angles(args[0], kwargs["position_ids"])}

        layer.register_forward_pre_hook(exchanged, with_kwargs=True)
    ours = Llama(
        config_from_json(json.loads(config.to_json_string())).replace(
            layers=tuple(LayerKind(rotary=Rotary(theta=base)) for base in bases)
        )
    )
    ours.load_state_dict(twin.state_dict())
    ids = torch.randint(64, (2, 30))
    with torch.no_grad():
        expected = twin(ids, use_cache=False).logits
        assert (ours(ids).logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_networks_own_embedding_by_layer_is_no_other_kind() -> None:
    config = several().config
    assert config.replace(layers=(LayerKind(rotary=Rotary(theta=100.0)),) * 4).layers == (LayerKind(),) * 4
    assert config_to_json(config.replace(modes=(LEFT_TO_RIGHT,), layers=(LayerKind(rotary=Rotary(theta=100.0)),) * 4))[
        "model_type"
    ] == "llama"  # fmt: skip


@pytest.mark.parametrize("rotary", [FAST, SLOW, YARN, False, True])
def test_a_layers_embedding_in_json(rotary: Any, tiny_config: ModelConfig) -> None:
    config = tiny_config.replace(layers=(LayerKind(rotary=rotary, chunk=4), LayerKind()))
    for fields in (config_to_json(config), our_config_to_json(config)):
        assert config_from_json(json.loads(json.dumps(fields))) == config


def test_transformers_configuration_keeps_them(tmp_path: Path) -> None:
    config = several().config
    AnyOrderConfig(backbone=config).save_pretrained(tmp_path)
    assert AnyOrderConfig.from_pretrained(tmp_path).backbone == config
    assert AnyOrderConfig(**AnyOrderConfig(backbone=config).to_dict()).backbone == config


def test_layers_in_words() -> None:
    assert layers(several().config.layers) == (
        "4 (1 full; 1 window of 5, rotary default, theta 20; 1 no rotary; 1 rotary linear, theta 1000, factor 4)"
    )


@pytest.mark.parametrize(
    ("rotary", "message"),
    [
        ("yarn", "layer field 'rotary' is 'yarn'"),
        (1, "layer field 'rotary' is 1"),
        (None, "layer field 'rotary' is None"),
        (10_000.0, r"layer field 'rotary' is 10000\.0"),
        ({"theta": 1e4}, "layer field 'rotary' is {'theta'"),
        (Rotary, "layer field 'rotary' is <class"),
    ],
)
def test_what_is_no_rotary_embedding(rotary: Any, message: str, tiny_config: ModelConfig) -> None:
    with pytest.raises(UserError, match=f"^{message}.*: give .*"):
        LayerKind(rotary=rotary)
    if not isinstance(rotary, bool | type) and rotary is not None:
        fields = our_config_to_json(tiny_config)
        fields["layers"][0]["rotary"] = rotary
        with pytest.raises(UserError):
            config_from_json(fields)


def test_lengths_of_several_embeddings(tiny_config: ModelConfig) -> None:
    dynamic = DynamicRotary(theta=1e4, factor=4.0, original_max_position_embeddings=32)
    for kinds, context, cacheable in (
        ((LayerKind(rotary=dynamic), LayerKind()), 64, 32),
        ((LayerKind(rotary=dynamic),) * 2, 128, 32),
        ((LayerKind(rotary=False), LayerKind(rotary=dynamic)), 128, 32),
        ((LayerKind(rotary=dynamic), LayerKind(window=4)), 128, 32),
        ((LayerKind(rotary=FAST), LayerKind()), 64, None),
        ((LayerKind(rotary=False),) * 2, 64, None),
    ):
        config = tiny_config.replace(layers=kinds)
        assert (config.context_length, config.cacheable) == (context, cacheable)
    model = Llama(tiny_config.replace(layers=(LayerKind(rotary=dynamic), LayerKind())))
    cache = model.new_cache(1, 64)
    with pytest.raises(UserError, match="dynamic rotary embeddings turn all keys anew beyond 32"):
        model.prepare(causal(), {"position": torch.arange(33)[None]}, cache=cache)


@pytest.mark.usefixtures("float64")
def test_stored_phrasings_are_turned_by_each_layers_own(tmp_path: Path) -> None:
    model = several()
    store = SegmentStore(tmp_path, model)
    keys = torch.randn(4, 6, 2, 4)
    turned = store._turned(keys, 3)
    for layer, rotary in enumerate((model.config.rotary, FAST, None, SLOW)):
        if rotary is None:
            assert torch.equal(turned[layer], keys[layer])
            continue
        angle = 3 * rotary.frequencies(4)
        as_complex = torch.complex(keys[layer][..., :2], keys[layer][..., 2:]) * torch.polar(torch.ones(2), angle)
        assert torch.allclose(turned[layer], torch.cat((as_complex.real, as_complex.imag), -1), atol=1e-12)


NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}


def test_rope_parameters_nested_by_type_of_layer() -> None:
    fields = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "use_sliding_window": True, "sliding_window": 8, "rope_parameters": NESTED,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    }  # fmt: skip
    config = config_from_json(fields)
    local = LayerKind(window=8, rotary=Rotary(theta=10_000.0))
    assert config.rotary == LinearRotary(theta=1_000_000.0, factor=8.0)
    assert config.layers == (local, local, LayerKind())
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config
    same = dict.fromkeys(NESTED, NESTED["sliding_attention"])
    assert config_from_json(fields | {"rope_parameters": same}).layers == (
        LayerKind(window=8), LayerKind(window=8), LayerKind(),
    )  # fmt: skip
    for wrong, message in (
        ({"full_attention": None}, "rope_parameters is empty"),
        (NESTED | {"other": {}}, "rope_parameters has the type of layer 'other'"),
        (NESTED | {"sliding_attention": 5}, "rope_parameters or rope_scaling is 5"),
        (NESTED | {"sliding_attention": {"rope_type": "default"}}, "rope_theta is missing"),
    ):
        with pytest.raises(UserError, match=message):
            config_from_json(fields | {"rope_parameters": wrong})
