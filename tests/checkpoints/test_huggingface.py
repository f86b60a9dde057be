from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyorder import AnyOrderForCausalLM
from anyorder.checkpoints import load_model, read_checkpoint, save_model
from anyorder.checkpoints.config_json import config_from_json, config_to_json
from anyorder.checkpoints.huggingface import read_config
from anyorder.checkpoints.rotary_json import rotary_from_json, rotary_to_json
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import ROTARY_EMBEDDINGS, DynamicRotary, LinearRotary, Llama3Rotary, Rotary, YarnRotary
from anyorder.model.self_attention import ATTENTIONS, SelfAttention

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN: dict[str, Any] = {
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "truncate": False,
    "attention_factor": 1.5,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
}

LINEAR = {"type": "linear", "factor": 2.0}

ROTARIES = [
    Rotary(theta=5e5),
    LinearRotary(theta=1e4, factor=2.0),
    Llama3Rotary(theta=5e5, **LLAMA3),  # type: ignore[arg-type]
    YarnRotary(theta=1e4, factor=4.0, original_max_position_embeddings=16),
    YarnRotary(theta=1e4, **YARN),
]


# ------------------------------------------------------------------------------------------------ configuration


def test_what_transformers_takes_for_granted() -> None:
    config = config_from_json(LLAMA)
    assert (config.rms_norm_eps, config.num_key_value_heads, config.head_dim) == (1e-6, 4, 16)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2,), None)
    assert not config.tie_word_embeddings


def test_null_is_not_given() -> None:
    nulls = dict.fromkeys(("num_key_value_heads", "head_dim", "attention_bias", "bos_token_id", "eos_token_id"))
    config = config_from_json(LLAMA | nulls)
    assert (config.num_key_value_heads, config.head_dim, config.attention_bias) == (4, 16, False)
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())


def test_biases_of_llama_are_on_the_output_too() -> None:
    config = config_from_json(LLAMA | {"attention_bias": True})
    assert (config.attention_bias, config.attention_output_bias, config.mlp_bias) == (True, True, False)


@pytest.mark.parametrize(("eos", "expected"), [(7, (7,)), ([7, 9], (7, 9)), (None, ())], ids=["one", "several", "none"])
def test_end_tokens(eos: int | list[int] | None, expected: tuple[int, ...]) -> None:
    config = config_from_json(LLAMA | {"eos_token_id": eos})
    assert config.eos_token_ids == expected
    assert config_to_json(config)["eos_token_id"] == eos


def test_end_tokens_of_the_generation_config_win(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"eos_token_id": 7}))
    assert read_config(tmp_path)[0].eos_token_ids == (7,)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert read_config(tmp_path)[0].eos_token_ids == (7,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert read_config(tmp_path)[0].eos_token_ids == (7, 9)


CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("llama", {}),
    "linear": ("llama", {"rotary": ROTARIES[1]}),
    "llama3": ("llama", {"rotary": ROTARIES[2]}),
    "head_dim": ("llama", {"head_dim": 32}),
    "biases": ("llama", {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "special tokens": ("llama", {"bos_token_id": 1, "eos_token_ids": (2, 3), "pad_token_id": 0}),
    "dynamic": ("llama", {"rotary": DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=64)}),
    "dynamic, trained on less": (
        "anyorder",
        {"rotary": DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=32)},
    ),
    "yarn": ("llama", {"rotary": YarnRotary(theta=1e4, factor=4.0, original_max_position_embeddings=16)}),
    "yarn, all fields": ("llama", {"rotary": YarnRotary(theta=1e4, **YARN)}),
    "a name for the heads": ("llama", {"attention": "GQA"}),
    "window": ("mistral", {"layers": (LayerKind(window=8),) * 2}),
    "hidden_size": ("mistral", {"hidden_size": 66, "head_dim": 16}),
    "wide weights": ("mistral", {"initializer_range": 2.0, "eos_token_ids": (5,), "rotary": ROTARIES[2]}),
    "q/k/v biases": ("qwen2", {"attention_bias": True}),
    "q/k/v biases, head_dim": ("anyorder", {"attention_bias": True, "head_dim": 32}),
    "q/k/v biases, mlp_bias": ("anyorder", {"attention_bias": True, "mlp_bias": True}),
    "q/k/v biases, window": ("qwen2", {"attention_bias": True, "layers": (LayerKind(window=8),) * 2}),
    "q/k/v biases, windows": ("qwen2", {"attention_bias": True, "layers": (LayerKind(window=8), LayerKind())}),
    "norms": ("qwen3", {"qk_norm": "learned", "head_dim": 24}),
    "norms, biases": ("qwen3", {"qk_norm": "learned", "attention_bias": True, "attention_output_bias": True}),
    "norms, windows": ("qwen3", {"qk_norm": "learned", "layers": (LayerKind(), LayerKind(window=8))}),
    "norms, NoPE": ("anyorder", {"qk_norm": "learned", "layers": (LayerKind(), LayerKind(rotary=False))}),
    "norms without weights": ("llama4_text", {"qk_norm": "weightless"}),
    "NoPE": ("smollm3", {"layers": (LayerKind(), LayerKind(rotary=False)), "pad_token_id": 0}),
    "NoPE, window": ("smollm3", {"layers": (LayerKind(window=8), LayerKind(rotary=False)), "mlp_bias": True}),
    "windows": ("smollm3", {"layers": (LayerKind(window=8), LayerKind())}),
    "two windows": ("anyorder", {"layers": (LayerKind(window=8), LayerKind(window=9))}),
    "chunks": ("llama4_text", {"layers": (LayerKind(chunk=16),) * 2}),
    "padding outside of the vocabulary": ("anyorder", {"pad_token_id": 128}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_come_back(tiny_config: ModelConfig, name: str, tmp_path: Path) -> None:
    model_type, changes = CONFIGS[name]
    config = tiny_config.replace(**changes)
    assert config_to_json(config)["model_type"] == model_type
    save_model(Llama(config), tmp_path / "folder")
    assert load_model(tmp_path / "folder").config == config


def test_precise_angles_are_no_part_of_a_llama(tiny_config: ModelConfig) -> None:
    assert config_to_json(tiny_config.replace(rotary=Rotary(theta=1e4, float32_angles=True)))["model_type"] == "llama"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gemma"},
            "model_type is 'gemma': .* reads 'llama', 'mistral', 'qwen2', 'qwen3', 'smollm3', 'mixtral', 'qwen3_moe', "
            "'olmoe', 'llama4_text', 'llama4', 'anyorder'",
        ),
        ({"model_type": None}, "model_type is None: this version reads"),
        ({"architectures": ["LlamaForTokenClassification"]}, r"architectures is .*: .* reads 'LlamaForCausalLM'"),
        (
            {"model_type": "mistral"},
            r"architectures is \['LlamaForCausalLM'\]: of model_type 'mistral', .* reads 'MistralForCausalLM'",
        ),
        ({"architectures": "LlamaForCausalLM"}, r"architectures is 'LlamaForCausalLM': .* reads 'LlamaForCausalLM'"),
        ({"is_causal": False}, "is_causal is False: this version reads networks with True only"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config is .*: .* with None only"),
        (
            {"layer_types": ["sliding_attention", "full_attention"]},
            "'layer_types' is .*: give 'full_attention' for all, since networks of this model_type have one kind",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': this version reads networks with 'silu' only"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}: .* with None only"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5: .* with 1 only"),
        ({"hidden_size": None}, "field 'hidden_size' is missing: add it"),
        ({"hidden_size": "64"}, "field 'hidden_size' is '64': give a whole number"),
        ({"hidden_size": 64.0}, "field 'hidden_size' is 64.0: give a whole number"),
        ({"num_hidden_layers": True}, "field 'num_hidden_layers' is True: give a whole number"),
        ({"num_hidden_layers": 0}, "field 'num_hidden_layers' is 0: give a whole number above 0"),
        ({"rms_norm_eps": "small"}, "field 'rms_norm_eps' is 'small': give a number"),
        ({"rms_norm_eps": float("nan")}, "field 'rms_norm_eps' is nan: give a number"),
        ({"tie_word_embeddings": 1}, "field 'tie_word_embeddings' is 1: give true or false"),
        ({"bos_token_id": "<s>"}, "field 'bos_token_id' is '<s>': give a whole number or null"),
        ({"eos_token_id": ["</s>"]}, r"field 'eos_token_ids' is \('</s>',\): give whole numbers"),
        ({"num_key_value_heads": 3}, "field 'num_key_value_heads' is 3: give a divisor of num_attention_heads"),
        ({"head_dim": 15}, "field 'head_dim' is 15: rotary embeddings turn pairs"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
    with pytest.raises(UserError, match=rf"config\.json': .*{message}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 64}, "field 'hiden_size' is unknown: correct its spelling, or delete it"),
        ({"hidden_size": None}, "field 'hidden_size' is missing: add it"),
        ({"attention_bias": "yes"}, "field 'attention_bias' is 'yes': give true or false"),
        (
            {"layers": [{"rotery": True}]},
            r"'layers' has the entry {'rotery': True}: give objects with 'rotary', 'window'",
        ),
        ({"layers": ["NoPE"]}, r"'layers' has the entry 'NoPE': give objects with"),
        ({"layers": [{"window": 1.5}]}, "field 'window' is 1.5: give a whole number or null"),
        ({"layers": 3}, "field 'layers' is 3: give a list"),
        ({"eos_token_ids": 3}, "field 'eos_token_ids' is 3: give a list"),
        ({"rotary": None}, "rope_theta is missing"),
        ({"rotary": 1e4}, "rope_parameters or rope_scaling is 10000.0: give an object with rope_type"),
    ],
)
def test_our_configurations_that_are_refused(tiny_config: ModelConfig, changes: dict[str, Any], message: str) -> None:
    ours = config_to_json(tiny_config.replace(attention_bias=True, mlp_bias=True))
    assert ours["model_type"] == "anyorder"
    with pytest.raises(UserError, match=message):
        config_from_json(ours | changes)


# ------------------------------------------------------------------------------------------------ rotary


@pytest.mark.parametrize("rotary", ROTARIES, ids=["default", "linear", "llama3", "yarn", "yarn, all fields"])
def test_both_forms_are_written_and_read(tiny_config: ModelConfig, rotary: Rotary) -> None:
    fields = config_to_json(tiny_config.replace(rotary=rotary))
    new = {"rope_parameters": fields["rope_parameters"]}
    old = {"rope_theta": fields["rope_theta"], "rope_scaling": fields["rope_scaling"]}
    assert rotary_from_json(new) == rotary_from_json(old) == rotary_from_json(new | old) == rotary
    assert (old["rope_scaling"] is None) == (type(rotary) is Rotary)


def test_the_oldest_form() -> None:
    fields = {"rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 4}}
    assert rotary_from_json(fields) == LinearRotary(theta=1e4, factor=4.0)


@pytest.mark.parametrize("scaling", [{"rope_type": "llama3", **LLAMA3}, {"rope_type": "yarn", "factor": 4.0}])
def test_the_original_length_is_the_trained_length_unless_given(scaling: dict[str, Any]) -> None:
    scaling = {name: value for name, value in scaling.items() if name != "original_max_position_embeddings"}
    fields = {"rope_theta": 5e5, "rope_scaling": scaling, "max_position_embeddings": 64}
    assert rotary_to_json(rotary_from_json(fields))["original_max_position_embeddings"] == 64
    # Where it stands beside `rope_parameters`, transformers follows it.
    beside = fields | {"original_max_position_embeddings": 32}
    assert rotary_to_json(rotary_from_json(beside))["original_max_position_embeddings"] == 32
    with pytest.raises(UserError, match="original_max_position_embeddings is given as 16 and as 32: keep the one"):
        rotary_from_json(beside | {"rope_scaling": scaling | {"original_max_position_embeddings": 16}})


def test_the_original_length_of_dynamic_is_the_trained_length_whatever_is_given() -> None:
    scaling = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    config = config_from_json(LLAMA | {"rope_parameters": scaling | {"rope_theta": 1e4}})
    assert config.rotary == DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=64)
    written = config_to_json(config)
    assert written["rope_parameters"] == {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert written["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}


def test_what_is_as_by_default_is_not_written() -> None:
    assert rotary_to_json(ROTARIES[3]) == {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip


def test_llamas_from_before_rope_theta() -> None:
    """Llama 2 as published: no field says the base, since none could."""
    fields = {name: value for name, value in LLAMA.items() if name != "rope_parameters"} | {"rope_scaling": None}
    for version in ("4.28.1", "4.31.0.dev0", "4.32.1"):
        assert config_from_json(fields | {"transformers_version": version}).rotary == Rotary(theta=1e4)
    for newer in (
        {"transformers_version": "4.33.0"},
        {"transformers_version": "5.0"},
        {"transformers_version": "?"},
        {},
    ):
        with pytest.raises(UserError, match="rope_theta is missing"):
            config_from_json(fields | newer)
    given = fields | {"transformers_version": "4.32.0.dev0", "rope_theta": 1e6}
    assert config_from_json(given).rotary == Rotary(theta=1e6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "rope_theta is missing, in rope_parameters too: add the base"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_theta is missing"),
        ({"rope_scaling": LINEAR}, "rope_theta is missing"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta is given as 500000.0 and as 10000.0"),
        (
            {"rope_theta": 1e4, "rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
            "rope_type is given as 'default' and as 'linear': keep the one that is right",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "rope_type is 'longrope': choose one of 'rotary', 'linear', 'dynamic', 'llama3', 'yarn', or register it in",
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear"}}, "rope field 'factor' is missing, which .* 'linear'"),
        ({"rope_theta": 1e4, "rope_scaling": LINEAR | {"factor": "2"}}, "rope field 'factor' is '2': give a number"),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope field 'original_max_position_embeddings' is missing, which rope_type 'yarn' needs",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope field 'original_max_position_embeddings' is missing, which rope_type 'dynamic' needs",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", **YARN, "truncate": 1}},
            "rope field 'truncate' is 1: give true or false",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", **YARN, "attention_factor": "big"}},
            "rope field 'attention_factor' is 'big': give a number or null",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", **YARN, "original_max_position_embeddings": 0.5}},
            "rope field 'original_max_position_embeddings' is 0.5: give a whole number",
        ),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", **YARN}}, "rotary field 'theta' is 1.0: .* above 1"),
        ({"rope_theta": "1e4"}, "rope field 'rope_theta' is '1e4': give a number"),
        ({"rope_theta": 0}, "rotary field 'theta' is 0: give a number above 0"),
        ({"rope_theta": 1e4, "rope_scaling": "linear"}, "rope_parameters or rope_scaling is 'linear': give an object"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is not 1"),
    ],
)  # fmt: skip
def test_rotary_embeddings_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rotary_from_json(fields)


# ------------------------------------------------------------------------------------------------ registered names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(Rotary):
    """With fields of every type that JSON has."""

    factors: tuple[float, ...]
    kind: str = "each"
    inverted: bool = False
    limit: int | None = None


class Doubled(SelfAttention):
    """Attention of one's own."""


@pytest.fixture
def registered(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A network of registered kinds."""
    monkeypatch.setitem(ROTARY_EMBEDDINGS, "scaled", Scaled)
    monkeypatch.setitem(ATTENTIONS, "doubled", Doubled)
    return tiny_config.replace(rotary=Scaled(theta=1e4, factors=(1.0, 2.5), kind="one", limit=7), attention="doubled")


def test_registered_names_come_back(registered: ModelConfig, tmp_path: Path) -> None:
    written = config_to_json(registered)
    assert (written["model_type"], written["attention"]) == ("anyorder", "doubled")
    assert written["rotary"]["rope_type"] == "scaled"
    save_model(Llama(registered), tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert again.config == registered
    assert type(again.model.layers[0].self_attn) is Doubled
    for changes in ({"attention": None}, {"rotary": Rotary(theta=1e4)}):  # each alone is not a Llama's either
        assert config_to_json(registered.replace(**changes))["model_type"] == "anyorder"


def test_names_that_are_not_registered(
    registered: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(Llama(registered), tmp_path / "folder")
    monkeypatch.delitem(ATTENTIONS, "doubled")
    with pytest.raises(
        UserError,
        match=r"config.json': attention is 'doubled': choose one of MHA, GQA, MQA, or register it in ATTENTIONS",
    ):
        load_model(tmp_path / "folder")
    monkeypatch.delitem(ROTARY_EMBEDDINGS, "scaled")
    with pytest.raises(
        UserError,
        match=r"config.json': rope_type is 'scaled': choose one of 'rotary', .*, or register it in ROTARY_EMB",
    ):
        load_model(tmp_path / "folder")
    with pytest.raises(UserError, match="rotary is of the kind Scaled: register it in ROTARY_EMBEDDINGS under a name"):
        config_to_json(registered.replace(attention=None))


def test_a_replaced_kind_is_not_taken_for_the_one_it_replaces(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTENTIONS, "GQA", Doubled)
    assert config_to_json(tiny_config)["model_type"] == "anyorder"
    monkeypatch.setitem(ATTENTIONS, "GQA", SelfAttention)
    assert config_to_json(tiny_config)["model_type"] == "llama"
    monkeypatch.setitem(ROTARY_EMBEDDINGS, "dynamic", Scaled)
    config = tiny_config.replace(rotary=Scaled(theta=1e4, factors=()))
    assert config_to_json(config)["model_type"] == "anyorder"
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": 2.0}, "rope field 'factors' is 2.0: give numbers"),
        ({"factors": [1, "2"]}, r"rope field 'factors' is \(1, '2'\): give numbers"),
        ({"kind": 1}, "rope field 'kind' is 1: give a name"),
        ({"limit": 1.5}, "rope field 'limit' is 1.5: give a whole number or null"),
        ({"factor": 2.0}, "rope field 'factor' is unknown: correct its spelling, or delete it"),
    ],
)
def test_fields_of_registered_kinds_that_are_refused(
    registered: ModelConfig, changes: dict[str, Any], message: str
) -> None:
    fields = config_to_json(registered)
    with pytest.raises(UserError, match=message):
        config_from_json(fields | {"rotary": fields["rotary"] | changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loose(Rotary):
    """With a field that may be anything."""

    factors: Any


@pytest.mark.parametrize("factors", [(1.0, 2), torch.ones(1), {1.0: 2.0}])
def test_rotary_embeddings_that_json_cannot_hold(registered: ModelConfig, factors: Any) -> None:
    ROTARY_EMBEDDINGS["loose"] = Loose
    with pytest.raises(
        UserError, match=r"rotary embedding Loose\(.*\) cannot be written: give its fields types of JSON"
    ):
        config_to_json(registered.replace(rotary=Loose(theta=1e4, factors=factors)))


@pytest.mark.parametrize("factors", [(1.0, "2"), (torch.ones(2),), {1.0: 2.0}])
def test_rotary_embeddings_have_what_their_annotations_say(factors: Any) -> None:
    with pytest.raises(UserError, match=r"rotary field 'factors' is .*: give a list of numbers"):
        Scaled(theta=1e4, factors=factors)


# ------------------------------------------------------------------------------------------------ weights


@pytest.fixture
def model(tiny_config: ModelConfig) -> Llama:
    return Llama(tiny_config)


@pytest.fixture
def folder(model: Llama, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def sharded(model: Llama, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "sharded", max_shard_size=50_000)
    return tmp_path / "sharded"


def edit(folder: Path, **changes: Tensor | None) -> None:
    """Replaces tensors of a whole checkpoint, or deletes them."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")


def test_files(folder: Path, sharded: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    names = sorted(file.name for file in sharded.iterdir())
    assert names[:3] == ["config.json", "generation_config.json", "model-00001-of-00007.safetensors"]
    assert names[-1] == "model.safetensors.index.json"
    assert all(file.stat().st_size < 55_000 for file in sharded.glob("*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(folder / "model.safetensors"))
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in load_file(folder / "model.safetensors").values()
    )
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_shard_size", [None, 1, 50_000, 10**9])
def test_round_trip(model: Llama, tmp_path: Path, dtype: torch.dtype, max_shard_size: int | None) -> None:
    model = model.to(dtype)
    save_model(model, tmp_path / "folder", max_shard_size=max_shard_size)
    again = load_model(tmp_path / "folder")
    assert again.dtype == dtype
    assert again.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_tied_head_is_stored_once(tiny_config: ModelConfig, tmp_path: Path) -> None:
    save_model(Llama(tiny_config.replace(tie_word_embeddings=True)), tmp_path / "folder")
    assert "lm_head.weight" not in load_file(tmp_path / "folder" / "model.safetensors")


def test_loaded_weights_do_not_depend_on_the_file(model: Llama, folder: Path) -> None:
    again = load_model(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_tables_of_old_versions_are_passed_over(model: Llama, folder: Path) -> None:
    edit(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert torch.equal(load_model(folder).lm_head.weight, model.lm_head.weight)


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.shapes["lm_head.weight"] == (128, 64)
    assert checkpoint.dtypes["lm_head.weight"] == checkpoint.dtype == torch.float32


@pytest.mark.parametrize("size", [0, -1])
def test_shards_of_no_size(model: Llama, tmp_path: Path, size: int) -> None:
    with pytest.raises(UserError, match=f"max_shard_size is {size}: give a number of bytes above 0"):
        save_model(model, tmp_path / "folder", max_shard_size=size)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ damage


def test_no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"folder '.*whole' has no config.json: give the folder of a Hugging Face"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "message"), [("{", r"is not JSON \(.*\)"), ("[]", "holds list, not a JSON object")]
)
def test_a_configuration_that_is_no_json(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json' {message}: fetch it again"):
        load_model(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has neither model.safetensors nor .*index.json: complete the folder"):
        load_model(folder)


PICKLED = "pytorch_model.bin"


def pickle_weights(folder: Path, shards: int, **options: Any) -> None:
    """Write the weights as folders had them before safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(weights, folder / PICKLED, **options)
        return
    where: dict[str, str] = {}
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in names}, folder / file, **options)
        where |= dict.fromkeys(names, file)
    (folder / f"{PICKLED}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
def test_tensors_in_pickled_files_are_read(folder: Path, shards: int, zipped: bool) -> None:
    expected = load_model(folder)
    pickle_weights(folder, shards, _use_new_zipfile_serialization=zipped)
    found = load_model(folder)
    assert found.config == expected.config
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
    face = AnyOrderForCausalLM.from_pretrained(folder)
    assert torch.equal(face.model.norm.weight, expected.model.norm.weight)


class Code:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_code_in_pickled_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Code(folder / "ran")}, folder / PICKLED)
    with pytest.raises(UserError, match=r"pytorch_model.bin' names \S+, which is no tensor and may be code; nothing"):
        load_model(folder)
    assert not (folder / "ran").exists()
    (folder / PICKLED).write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model.bin' of 0 bytes is damaged, not whole, or no archive"):
        load_model(folder)


def test_missing_and_unexpected_tensors(folder: Path) -> None:
    edit(folder, **{"lm_head.weight": None})
    with pytest.raises(UserError, match=r"checkpoint '.*whole' lacks tensor 'lm_head.weight'"):
        load_model(folder)
    edit(folder, **{"lm_head.weight": torch.zeros(128, 64), "lm_head.bias": torch.zeros(128)})
    with pytest.raises(
        UserError, match=r"checkpoint '.*whole' has tensor 'lm_head.bias' that the network does not have"
    ):
        load_model(folder)


def test_no_tensors_at_all(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks tensors 'model.embed_tokens.weight', "):
        load_model(folder)


def test_a_shape_that_disagrees(folder: Path) -> None:
    edit(folder, **{"model.layers.1.self_attn.k_proj.weight": torch.zeros(64, 64)})
    with pytest.raises(
        UserError, match=r"'model.layers.1.self_attn.k_proj.weight' .* shape \[64, 64\].* asks for \[32, 64\]"
    ):
        load_model(folder)


def test_nan(folder: Path) -> None:
    edit(folder, **{"model.norm.weight": torch.full((64,), float("nan"))})
    with pytest.raises(UserError, match=r"tensor 'model.norm.weight' in '.*whole' holds NaN or infinity: fetch"):
        load_model(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.int64])
def test_weights_of_another_kind(folder: Path, kind: torch.dtype) -> None:
    edit(folder, **{"model.norm.weight": torch.ones(64).to(kind)})
    with pytest.raises(
        UserError, match=r"'model.norm.weight' in .* is stored as (I8|F8_E4M3|I64): store it as one of 'float64'"
    ):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file(folder: Path, keep: int) -> None:
    data = (folder / "model.safetensors").read_bytes()[:keep]
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(
        UserError, match=rf"model.safetensors' of {len(data)} bytes is damaged or not whole \(.*\): fetch"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (rb"\[128,64\]", b"[128,65]"),
        (rb"\[128,64\]", b"[999,64]"),
        (rb'"data_offsets":\[0,\d', rb'"data_offsets":[0,9'),
        (rb"^........", (2**40).to_bytes(8, "little")),
        (rb'"F32"', b'"F99"'),
    ],
    ids=["shape", "large shape", "offsets", "header length", "dtype"],
)
def test_a_header_that_lies(folder: Path, pattern: bytes, replacement: bytes) -> None:
    data = (folder / "model.safetensors").read_bytes()
    changed = re.sub(pattern, replacement, data, count=1, flags=re.DOTALL)
    assert changed != data
    (folder / "model.safetensors").write_bytes(changed)
    with pytest.raises(UserError, match=r"model.safetensors' of \d+ bytes is damaged or not whole"):
        load_model(folder)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00007.safetensors").unlink()
    with pytest.raises(UserError, match=r"weight file '.*model-00002-of-00007.safetensors' is missing: complete"):
        load_model(sharded)


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00007.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"weight file '.*model-00002-of-00007.safetensors' of \d+ bytes is damaged"):
        load_model(sharded)


def change_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_that_lies(sharded: Path) -> None:
    where = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    change_index(sharded, where | {"lm_head.weight": "model-00001-of-00007.safetensors"})
    with pytest.raises(UserError, match=r"tensor 'lm_head.weight' is not in 'model-00001-of-00007.safetensors', but"):
        load_model(sharded)
    change_index(sharded, where | {"more": "model-00001-of-00007.safetensors"})
    with pytest.raises(UserError, match=r"tensor 'more' is not in 'model-00001-of-00007.safetensors', but"):
        load_model(sharded)


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"a": 1}, {"a": "../elsewhere.safetensors"}, {"a": "/etc/passwd"}]
)
def test_an_index_that_is_none(sharded: Path, weight_map: object) -> None:
    change_index(sharded, weight_map)
    with pytest.raises(UserError, match=r"index.json' has no weight_map of tensors to files beside it: fetch it again"):
        load_model(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"more": torch.zeros(1), "lm_head.weight": torch.zeros(128, 64)}, sharded / "more.safetensors")
    where = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    change_index(sharded, where | {"more": "more.safetensors"})
    with pytest.raises(UserError, match=r"tensor 'lm_head.weight' is in '.*' and in 'more.safetensors': delete one"):
        load_model(sharded)
