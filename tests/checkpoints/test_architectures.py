"""What each architecture's `config.json` says, field by field."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from anyorder.checkpoints.architectures import ARCHITECTURES, Architecture
from anyorder.checkpoints.config_json import config_from_json, config_to_json
from anyorder.checkpoints.layer_fields import FULL, SLIDING
from anyorder.checkpoints.rotary_json import NATIVE_ROTARY
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import ROTARY_EMBEDDINGS

NAMES = {architecture.model_type: architecture.class_name for architecture in ARCHITECTURES}

WIDE, NARROW, NOPE = LayerKind(), LayerKind(window=5), LayerKind(rotary=False)


def fields(model_type: str, **changes: Any) -> dict[str, Any]:
    """A network of four layers."""
    return {
        "model_type": model_type,
        "architectures": [NAMES[model_type]],
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 1e4,
        **changes,
    }


def read(model_type: str, **changes: Any) -> ModelConfig:
    return config_from_json(fields(model_type, **changes))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=NAMES)
def test_missing_fields_are_what_transformers_takes(architecture: Architecture) -> None:
    theirs = type(AutoConfig.for_model(architecture.model_type))
    defaults = {field.name: field.default for field in dataclasses.fields(theirs)}  # type: ignore[arg-type]
    for name, value in {
        **architecture.defaults, **architecture.layers.defaults, **architecture.others.defaults
    }.items():  # fmt: skip
        derived = name in ("num_key_value_heads", "head_dim") and value == 0
        if name in defaults:
            assert defaults[name] == (None if derived else value), name
        else:  # transformers follows these where it finds them, or refuses what they say
            published = {"qwen3_moe": ("head_dim",)}.get(architecture.model_type, ())
            assert name in (*architecture.unwritten, "layer_types", *published), name


@pytest.mark.parametrize("model_type", NAMES)
def test_null_heads_are_derived(model_type: str) -> None:
    config = read(model_type, num_key_value_heads=None, head_dim=None)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)


def test_what_is_the_same_in_all_networks() -> None:
    said = {name: (c.attention_bias, c.attention_output_bias, c.qk_norm) for name in NAMES if (c := read(name))}
    assert said.pop("qwen2") == (True, False, "none")
    assert said.pop("qwen3") == said.pop("qwen3_moe") == (False, False, "learned")
    assert said.pop("olmoe") == (False, False, "learned-full-width")
    assert said.pop("llama4_text") == (False, False, "weightless")
    assert set(said.values()) == {(False, False, "none")}
    for name in ("llama", "qwen3", "smollm3"):
        config = read(name, attention_bias=True)
        assert config.attention_bias
        assert config.attention_output_bias
    assert not read("mistral", attention_bias=True).attention_bias
    assert read("qwen3").head_dim == 128
    assert read("smollm3").tie_word_embeddings
    assert read("smollm3", vocab_size=128_256).eos_token_ids == (128_001,)


def test_fields_that_change_nothing_are_passed_over() -> None:
    harmless = {"use_cache": False, "attention_dropout": 0.1, "pretraining_tp": 2, "use_mrope": False, "id2label": {}}
    for name in NAMES:
        assert read(name, **harmless) == read(name)


WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5}

EXPERT = LayerKind(experts=True)
GROWING = LayerKind(rotary=False, query_scale=QueryScale(strength=0.1, period=8192), experts=True)
LOCAL = LayerKind(chunk=8192, experts=True)

QWEN: list[tuple[dict[str, Any], tuple[LayerKind, ...]]] = [
    ({}, (WIDE,) * 4),
    ({"sliding_window": 5, "max_window_layers": 2}, (WIDE,) * 4),
    (WINDOWS | {"max_window_layers": 2}, (WIDE, WIDE, NARROW, NARROW)),
    (WINDOWS | {"max_window_layers": 0}, (NARROW,) * 4),
    (WINDOWS, (WIDE,) * 4),
    (WINDOWS | {"sliding_window": None, "max_window_layers": 0}, (WIDE,) * 4),
    (WINDOWS | {"layer_types": [SLIDING, FULL, FULL, SLIDING]}, (NARROW, WIDE, WIDE, NARROW)),
    (WINDOWS | {"layer_types": [FULL] * 4}, (WIDE,) * 4),
]

LAYERS: list[tuple[str, dict[str, Any], tuple[LayerKind, ...]]] = [
    ("llama", {"layer_types": [FULL] * 4}, (WIDE,) * 4),
    ("mistral", {}, (LayerKind(window=4096),) * 4),
    ("mistral", {"sliding_window": None}, (WIDE,) * 4),
    ("mistral", {"sliding_window": 5}, (NARROW,) * 4),
    ("mistral", {"sliding_window": 5, "layer_types": [SLIDING] * 4}, (NARROW,) * 4),
    *((name, *case) for name in ("qwen2", "qwen3") for case in QWEN),
    ("mixtral", {}, (EXPERT,) * 4),
    ("mixtral", {"sliding_window": 5, "num_experts": 4}, (LayerKind(window=5, experts=True),) * 4),
    ("olmoe", {}, (EXPERT,) * 4),
    ("qwen3_moe", {}, (EXPERT,) * 4),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (WIDE, EXPERT, WIDE, WIDE)),
    ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}, (WIDE,) * 4),
    ("llama4_text", {}, (LOCAL, LOCAL, LOCAL, GROWING)),
    # An empty list of transformers' says the default for rotary, and none for experts.
    ("llama4_text", {"no_rope_layers": []}, (LOCAL, LOCAL, LOCAL, GROWING)),
    (
        "llama4_text",
        {"moe_layers": [], "attention_chunk_size": None, "attn_temperature_tuning": False},
        (WIDE, WIDE, WIDE, NOPE),
    ),
    ("smollm3", {}, (WIDE, WIDE, WIDE, NOPE)),
    ("smollm3", {"no_rope_layer_interval": 2}, (WIDE, NOPE, WIDE, NOPE)),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "no_rope_layer_interval": 2}, (NOPE, WIDE, WIDE, NOPE)),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 0]}, (WIDE,) * 4),
    ("smollm3", {"sliding_window": 5}, (WIDE, WIDE, WIDE, NOPE)),
    (
        "smollm3",
        WINDOWS,
        (WIDE, WIDE, WIDE, LayerKind(rotary=False, window=5)),
    ),
    (
        "smollm3",
        WINDOWS | {"layer_types": [SLIDING, FULL, SLIDING, FULL]},
        (NARROW, WIDE, NARROW, NOPE),
    ),
]


@pytest.mark.parametrize(("model_type", "changes", "layers"), LAYERS)
def test_kinds_of_layers(model_type: str, changes: dict[str, Any], layers: tuple[LayerKind, ...]) -> None:
    config = read(model_type, **changes)
    assert config.layers == layers
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((WIDE, WIDE, NARROW, NARROW), (True, 5, 2)),
        ((WIDE, NARROW, WIDE, NARROW), (True, 5, 1)),
        ((NARROW,) * 4, (True, 5, 0)),
        ((WIDE,) * 4, (False, None, 4)),
    ],
)
def test_readers_that_do_not_know_layer_types_are_told_what_they_can_be(
    layers: tuple[LayerKind, ...], expected: tuple[bool, int | None, int]
) -> None:
    """vLLM refuses a mix of layers where `max_window_layers` is not their number."""
    written = config_to_json(read("qwen3").replace(layers=layers))
    assert written["model_type"] == "qwen3"
    assert (written["use_sliding_window"], written["sliding_window"], written["max_window_layers"]) == expected


def test_numbers_that_must_not_be_whole() -> None:
    """transformers refuses `"initializer_range": 1`."""
    config = read("llama").replace(initializer_range=1, rms_norm_eps=1)
    written = config_to_json(config)
    assert repr((written["initializer_range"], written["rms_norm_eps"])) == "(1.0, 1.0)"
    AutoConfig.for_model(**written)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mistral", {"sliding_window": 0}, "layer field 'window' is 0: give a whole number above 0, or None"),
        ("mistral", {"sliding_window": "5"}, "field 'sliding_window' is '5': give a whole number or null"),
        (
            "mistral",
            {"layer_types": [FULL, SLIDING] * 2},
            "'layer_types' is .*: give 'sliding_attention' for all, since networks of this model_type have one kind",
        ),
        (
            "mistral",
            {"sliding_window": None, "layer_types": [SLIDING] * 4},
            "'layer_types' is .*: give 'full_attention' for all",
        ),
        (
            "qwen2",
            {"layer_types": [FULL] * 3},
            "'layer_types' is .*: give 'full_attention' or 'sliding_attention' for each of the 4 layers",
        ),
        ("qwen2", {"layer_types": [FULL, FULL, FULL, "chunked_attention"]}, "'layer_types' is .*: give 'full_"),
        ("qwen3", {"layer_types": "full_attention"}, "'layer_types' is .*: give a list of names or null"),
        (
            "qwen3",
            {"layer_types": [SLIDING] * 4, "sliding_window": 5},
            "'layer_types' has 'sliding_attention', but there is no window: set use_sliding_window to true",
        ),
        (
            "smollm3",
            {"layer_types": [SLIDING] * 4, "use_sliding_window": True},
            "'layer_types' has 'sliding_attention', but there is no window: .* and sliding_window to the number",
        ),
        ("qwen2", {"use_sliding_window": 1}, "field 'use_sliding_window' is 1: give true or false"),
        ("qwen2", {"max_window_layers": 2.0}, "field 'max_window_layers' is 2.0: give a whole number"),
        (
            "smollm3",
            {"no_rope_layers": [1, 0, 1]},
            r"'no_rope_layers' is \[1, 0, 1\]: give 1 or 0 for each of the 4 layers, with and without rotary",
        ),
        ("smollm3", {"no_rope_layers": [1, 2, 3, 4]}, r"'no_rope_layers' is .*: give 1 or 0 for each"),
        ("smollm3", {"no_rope_layers": [True] * 4}, r"'no_rope_layers' is .*: give whole numbers or null"),
        ("smollm3", {"no_rope_layer_interval": 0}, "'no_rope_layer_interval' is 0: give a whole number above 0"),
        ("mixtral", {"num_experts_per_tok": 9}, "experts field 'chosen' is 9: give at most the number of experts, 8"),
        ("mixtral", {"num_local_experts": 0}, "experts field 'number' is 0: give a whole number above 0"),
        ("mixtral", {"num_local_experts": "8"}, "field 'num_local_experts' is '8': give a whole number"),
        ("qwen3_moe", {"mlp_only_layers": [4]}, r"'mlp_only_layers' is \[4\]: give numbers of layers, from 0 to 3"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "'decoder_sparse_step' is 0: give a whole number above 0"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0: this version reads networks with None only"),
        ("llama4_text", {"attention_chunk_size": 0}, "'attention_chunk_size' is 0: .* or null for no chunks"),
        (
            "llama4_text",
            {"attention_chunk_size": None, "layer_types": ["chunked_attention"] * 4},
            "there is no chunk: set",
        ),
        ("llama4_text", {"layer_types": [FULL] * 3}, "give 'chunked_attention' or 'full_attention' for each of the 4"),
        ("llama4_text", {"moe_layers": [0, 9]}, r"'moe_layers' is \[0, 9\]: give numbers of layers, from 0 to 3"),
        ("llama4_text", {"no_rope_layers": [1, 0]}, r"'no_rope_layers' is \[1, 0\]: give 1 or 0 for each of the 4"),
        (
            "llama4_text",
            {"interleave_moe_layer_step": 0},
            "'interleave_moe_layer_step' is 0: give a whole number above",
        ),
        ("llama4_text", {"floor_scale": 0}, "query scale field 'period' is 0: give a number from 1 on"),
        ("qwen3", {"num_key_value_heads": 3}, "'num_key_value_heads' is 3: give a divisor of num_attention_heads"),
        ("qwen3", {"rope_theta": None}, "rope_theta is missing"),
    ],
)
def test_fields_that_are_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(model_type, **changes)


@pytest.fixture
def guide(project_root: Path) -> Path:
    return project_root / "docs" / "architectures.md"


def test_the_guide_names_all(guide: Path) -> None:
    page = guide.read_text(encoding="utf-8")
    for architecture in ARCHITECTURES:
        assert f"`{architecture.class_name}`" in page
    for name in (*ROTARY_EMBEDDINGS, *NATIVE_ROTARY):
        assert f'"{name}"' in page
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (guide.parent / link).is_file(), link


def test_the_code_of_the_guide_runs(guide: Path, tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "block.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "block.py"))
    config = read("llama").replace(rotary=names["Slower"](theta=1e4, share=0.5), attention="louder")
    assert config_to_json(config)["rotary"]["rope_type"] == "slower"
    assert config_from_json(config_to_json(config)) == config
