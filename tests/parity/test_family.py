"""Every architecture with every rotary embedding gives transformers' logits: short and long, cached and not.

transformers is always run without a cache, on the whole text: the slow, obvious twin. The networks are tiny and random;
what they are is read from transformers' own configurations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from anyorder.checkpoints import load_model, save_model
from anyorder.checkpoints.architectures import ARCHITECTURES
from anyorder.checkpoints.config_json import config_from_json, config_to_json, rules_of
from anyorder.checkpoints.layouts import Gathered
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import ROTARY_EMBEDDINGS, DynamicRotary, Rotary
from anyorder.visibility import causal
from tests.model.oracle import narrowed, oracle_logits
from tests.writers import write_left_to_right

TRAINED = 16
"""Tokens."""

WINDOW = 7
"""Tokens; shorter than all texts but one."""

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW}
FULL, SLIDING = "full_attention", "sliding_attention"

SOME_EXPERTS: dict[str, Any] = {
    "head_dim": 12,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
}

LLAMA4: dict[str, Any] = {
    "head_dim": 12,
    "num_local_experts": 4,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "attention_chunk_size": 5,
    "floor_scale": 4,
    "attn_scale": 0.5,
}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {"head_dim": 12}),
    "Llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Mistral": ("mistral", {"sliding_window": WINDOW}),
    "Mistral, no window": ("mistral", {"sliding_window": None}),
    "Mistral, head_dim": ("mistral", {"sliding_window": WINDOW, "hidden_size": 38, "head_dim": 12}),
    "Qwen2": ("qwen2", {}),
    "Qwen2, some windows": ("qwen2", WINDOWS | {"max_window_layers": 1}),
    "Qwen2, mixed": ("qwen2", WINDOWS | {"layer_types": [SLIDING, FULL, SLIDING], "tie_word_embeddings": True}),
    "Qwen3": ("qwen3", {"head_dim": 12}),
    "Qwen3, biases": ("qwen3", {"head_dim": 8, "attention_bias": True, "num_key_value_heads": 1}),
    "Qwen3, mixed": ("qwen3", WINDOWS | {"head_dim": 12, "layer_types": [SLIDING, FULL, SLIDING]}),
    "SmolLM3": ("smollm3", {"no_rope_layer_interval": 2}),
    "SmolLM3, windows": ("smollm3", WINDOWS | {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": False}),
    "Mixtral": ("mixtral", {"num_local_experts": 6, "sliding_window": WINDOW, "head_dim": 8}),
    "Mixtral, no window": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "head_dim": 12}),
    "Qwen3-MoE": ("qwen3_moe", SOME_EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    "Qwen3-MoE, windows": ("qwen3_moe", SOME_EXPERTS | WINDOWS | {"decoder_sparse_step": 2, "attention_bias": True}),
    "OLMoE": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 20}),
    "Llama 4": ("llama4_text", LLAMA4 | {"interleave_moe_layer_step": 2, "no_rope_layer_interval": 3}),
    "Llama 4, two experts": (
        "llama4_text",
        LLAMA4
        | {"no_rope_layers": [0, 1, 0], "num_experts_per_tok": 2, "use_qk_norm": False, "attention_bias": True}
        | {"layer_types": ["chunked_attention", FULL, FULL]},
    ),
    "Llama 4, dense": ("llama4_text", LLAMA4 | {"moe_layers": [], "layer_types": [FULL] * 3}),
    "SmolLM3, mixed": (
        "smollm3",
        WINDOWS | {"no_rope_layers": [0, 1, 1], "layer_types": [FULL, SLIDING, FULL], "attention_bias": True},
    ),
}

WRITTEN_AS = {"Mistral, no window": "LlamaForCausalLM"}
"""Those that come back as another architecture, which is nearer."""

BANDS: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 12}

ROTARY: dict[str, dict[str, Any]] = {
    "rotary": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, **BANDS},
    "yarn": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 12},
}


def transformers_network(name: str, rotary: str = "rotary", **changes: Any) -> Any:
    """Norms and biases are random too, or a forgotten one would not show."""
    model_type, fields = NETWORKS[name]
    rope = ROTARY[rotary] | {"rope_theta": 500.0}
    config = AutoConfig.for_model(model_type, **{**SHAPE, **fields, "rope_parameters": rope, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                weight.normal_(1.0 if "norm" in parameter_name else 0.0, 0.3)
            if "experts" in parameter_name or "gate.weight" in parameter_name or "router" in parameter_name:
                weight.normal_(0.0, 0.3)
    return model


def twin(theirs: Any) -> Llama:
    fields, state = json.loads(theirs.config.to_json_string()), theirs.state_dict()
    model = Llama(config_from_json(fields)).eval()
    expected, found = (
        {name: tuple(weight.shape) for name, weight in tensors.items()} for tensors in (model.state_dict(), state)
    )
    tensors = Gathered(Path(), rules_of(fields), expected, found, model.config.head_dim, ())
    for name in expected.keys() & tensors.names.keys():
        state[name] = tensors.read(name, lambda there, rows: state[there], torch.float32)
    model.load_state_dict({name: state[name] for name in expected})
    return model


def transformers_logits(theirs: Any, ids: Tensor, **options: Any) -> Tensor:
    # Dynamic embeddings keep the base of the longest text they have seen; a new one has seen none.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    with torch.no_grad():
        return theirs(ids, use_cache=False, **options).logits


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, SHAPE["vocab_size"], (batch, length))


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


@torch.no_grad()
def cached_logits(model: Llama, ids: Tensor, prompt: int = 5) -> Tensor:
    """The prompt in one pass, then one token at a time."""
    batch, length = ids.shape
    cache = model.new_cache(batch, length)
    position = torch.arange(length).expand(batch, -1)
    parts = []
    for start, end in [(0, prompt), *((at, at + 1) for at in range(prompt, length))]:
        views = model.prepare(causal(), {"position": position[:, start:end]}, cache=cache)
        parts.append(model.logits(model.hidden(ids[:, start:end], views, cache)))
    return torch.cat(parts, 1)


def test_all_are_tried_here() -> None:
    assert {model_type for model_type, _ in NETWORKS.values()} == {known.model_type for known in ARCHITECTURES}
    assert ROTARY.keys() == ROTARY_EMBEDDINGS.keys()


# ---- logits ----------------------------------------------------------------------------------------


# What mixtures have of their own does not depend on the angles.
WITH_ROTARY = [
    (name, rotary)
    for name in NETWORKS
    for rotary in ROTARY
    if rotary in ("rotary", "yarn") or not any("experts" in field for field in NETWORKS[name][1])
]


@pytest.mark.parametrize(("name", "rotary"), WITH_ROTARY)
def test_logits(name: str, rotary: str) -> None:
    """Up to three times the trained length."""
    theirs = transformers_network(name, rotary)
    model = twin(theirs)
    for length in (3, TRAINED, 3 * TRAINED):
        ids = random_ids(2, length)
        with torch.no_grad():
            assert_near(model(ids).logits, transformers_logits(theirs, ids))


@pytest.mark.parametrize(("name", "rotary"), [case for case in WITH_ROTARY if case[1] != "dynamic"])
def test_cached_logits(name: str, rotary: str) -> None:
    """Beyond the trained length."""
    theirs = transformers_network(name, rotary)
    ids = random_ids(2, 2 * TRAINED)
    assert_near(cached_logits(twin(theirs), ids), transformers_logits(theirs, ids))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", ["Mistral", "Qwen3, mixed", "SmolLM3, mixed", "Mixtral", "OLMoE", "Llama 4"])
def test_padding_beside_a_window(name: str, left: bool, backend: str) -> None:
    # transformers takes the column for the position where queries grow, whatever padding is before it.
    as_given = {"attn_temperature_tuning": False} if left and name == "Llama 4" else {}
    theirs = transformers_network(name, **as_given)
    model = twin(theirs)
    model.backend = backend
    ids, mask = random_ids(2, 3 * WINDOW), torch.ones(2, 3 * WINDOW, dtype=torch.int64)
    mask[1, slice(0, WINDOW + 2) if left else slice(-WINDOW - 2, None)] = 0
    with torch.no_grad():
        ours = model(ids, attention_mask=mask).logits[mask.bool()]
    assert_near(ours, transformers_logits(theirs, ids, attention_mask=mask)[mask.bool()])


# ---- dynamic embeddings ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_dynamic_cached_within_the_trained_length(name: str) -> None:
    theirs = transformers_network(name, "dynamic")
    ids = random_ids(2, TRAINED)
    assert_near(cached_logits(twin(theirs), ids), transformers_logits(theirs, ids))


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2, mixed", "Qwen3", "SmolLM3"])
def test_dynamic_writing_beyond_the_trained_length(name: str) -> None:
    """Each token is the one of transformers for the text up to there, under the base of that length."""
    theirs = transformers_network(name, "dynamic", eos_token_id=None)
    prompts = [random_ids(1, length)[0].tolist() for length in (4, TRAINED - 3, TRAINED + 2)]
    written = write_left_to_right(twin(theirs), prompts, max_new_tokens=TRAINED + 4)
    assert max(map(len, written.sequences)) == 2 * TRAINED
    for event in written.trace.events:
        before = torch.tensor([written.sequences[event.sample_id][: event.position]])
        expected = transformers_logits(theirs, before)[0, -1]
        assert event.token_id == int(expected.argmax())
        log_prob = float(expected.log_softmax(-1)[event.token_id])
        assert event.log_prob == pytest.approx(log_prob, abs=1e-5 * float(expected.abs().max()))


@pytest.mark.usefixtures("float64")
def test_dynamic_cached_is_uncached() -> None:
    """Also where one text passes the trained length long before another."""
    model = dynamic_network(num_hidden_layers=3)
    prompts = [random_ids(1, length)[0].tolist() for length in (4, TRAINED - 3)]
    cached, uncached = (
        write_left_to_right(model, prompts, max_new_tokens=TRAINED, use_cache=use_cache) for use_cache in (True, False)
    )
    assert cached.sequences == uncached.sequences
    for ours, slow in zip(cached.trace.events, uncached.trace.events, strict=True):
        assert ours.log_prob == pytest.approx(slow.log_prob, abs=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("left", [False, True])
def test_dynamic_batches_are_their_rows(left: bool) -> None:
    """Whatever the lengths, each text has the base of its own."""
    model = dynamic_network(num_hidden_layers=3)
    lengths = [3 * TRAINED, 5, TRAINED, TRAINED + 1, 2 * TRAINED]
    ids = random_ids(len(lengths), max(lengths))
    ahead = torch.arange(max(lengths)).expand_as(ids) < torch.tensor(lengths).unsqueeze(1)
    mask = ahead.flip(1) if left else ahead
    with torch.no_grad():
        together = model(ids, attention_mask=mask.long()).logits
        for row, kept in enumerate(mask):
            assert_near(together[row, kept], model(ids[row, kept].unsqueeze(0)).logits[0], 1e-9)


def dynamic_network(**changes: Any) -> Llama:
    rotary = DynamicRotary(theta=500.0, factor=2.0, original_max_position_embeddings=TRAINED)
    shape = {name: value for name, value in SHAPE.items() if name != "eos_token_id"}
    return Llama(ModelConfig(**{**shape, **changes}, rotary=rotary)).eval()


# ---- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rotary"), [*((name, "rotary") for name in NETWORKS), *(("Qwen3, mixed", rotary) for rotary in ROTARY)]
)
def test_folders_go_both_ways(name: str, rotary: str, tmp_path: Path) -> None:
    theirs = transformers_network(name, rotary)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    again, report = loaded
    assert not any(report.values()), report
    assert type(again).__name__ == WRITTEN_AS.get(name, type(theirs).__name__)
    assert load_model(tmp_path / "ours").config == ours.config
    ids = random_ids(2, 2 * TRAINED)
    expected = transformers_logits(theirs, ids)
    with torch.no_grad():
        assert_near(ours(ids).logits, expected)
    assert torch.equal(transformers_logits(again, ids), expected)


# ---- layers of several kinds -----------------------------------------------------------------------

MIXED = (
    LayerKind(window=3),
    LayerKind(chunk=4),
    LayerKind(),
    LayerKind(rotary=False),
    LayerKind(chunk=5, rotary=False),
    LayerKind(window=6, rotary=False),
)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("qk_norm", ["none", "learned", "weightless"])
def test_windows_chunks_and_full_attention(qk_norm: str, backend: str, tmp_path: Path) -> None:
    """What no architecture has, against a loop over rows and keys; cached, uncached, saved and loaded."""
    shape = {name: value for name, value in SHAPE.items() if name != "eos_token_id"} | {"num_hidden_layers": len(MIXED)}
    config = ModelConfig(**shape, rotary=Rotary(theta=500.0), layers=MIXED, qk_norm=qk_norm, attention_bias=True)
    assert config_to_json(config)["model_type"] == "anyorder"
    model = Llama(config, backend).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            weight.data.normal_(1.0 if "norm" in name else 0.0, 0.3)
    ids = random_ids(1, 17)

    def sees(kind: LayerKind, query: int, key: int) -> bool:
        return key <= query and narrowed(kind, query, key)

    expected = oracle_logits(model, ids[0].tolist(), range(17), sees, 17)
    with torch.no_grad():
        assert_near(model(ids).logits[0], expected, 1e-9)
    assert_near(cached_logits(model, ids)[0], expected, 1e-9)
    save_model(model, tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert again.config == config
    with torch.no_grad():
        assert_near(again(ids).logits[0], expected, 1e-9)


# ---- published networks ----------------------------------------------------------------------------

LLAMA31: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "Llama-2-7B": (
        6_738_415_616,
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.31.0.dev0",
            "use_cache": True,
            "vocab_size": 32000,
        },
    ),
    "Llama-3.1-8B": (
        8_030_261_248,
        LLAMA31 | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "tie_word_embeddings": False,
            "transformers_version": "4.43.0.dev0",
        },
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        LLAMA31 | {
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "rope_scaling": LLAMA31["rope_scaling"] | {"factor": 32.0},
            "tie_word_embeddings": True,
            "transformers_version": "4.45.0.dev0",
        },
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.34.0.dev0",
            "use_cache": True,
            "vocab_size": 32000,
        },
    ),
    "Qwen2-0.5B": (
        494_032_768,
        {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 896,
            "initializer_range": 0.02,
            "intermediate_size": 4864,
            "max_position_embeddings": 131072,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.1",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
    ),
    "SmolLM3-3B": (
        3_075_098_624,
        {
            "model_type": "smollm3",
            "architectures": ["SmolLM3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": 128012,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 11008,
            "layer_types": [FULL] * 36,
            "max_position_embeddings": 65536,
            "max_window_layers": 28,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 4,
            "pad_token_id": 128004,
            "pretraining_tp": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.54.0.dev0",
            "use_cache": False,
            "use_sliding_window": False,
            "vocab_size": 128256,
        },
    ),
}  # fmt: skip
"""Their number of parameters, and their config.json."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name: str) -> None:
    """Without memory, on the meta device."""
    expected, fields = PUBLISHED[name]
    config = config_from_json(fields)
    with torch.device("meta"):
        model = Llama(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    written = config_to_json(config)
    assert written["architectures"] == fields["architectures"]
    assert config_from_json(written) == config
