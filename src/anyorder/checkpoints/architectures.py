"""The architectures that networks are read from and written as, as data.

Each is one of transformers' classes: which fields its `config.json` has, what transformers takes where one is missing,
what is the same in all of its networks, how it says of which kind each layer is and which experts there are, and which
tensors have other names, or are cut otherwise, than here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anyorder.checkpoints.json_types import Json
from anyorder.checkpoints.layer_fields import ALL_ALIKE, ALL_FULL, TYPED, TYPED_OR_NOPE, LayerFields
from anyorder.checkpoints.layouts import Rule
from anyorder.checkpoints.mixture_fields import (
    LLAMA4_EXPERTS,
    LLAMA4_LAYERS,
    LLAMA4_TENSORS,
    MIXTRAL_EXPERTS,
    MIXTRAL_LAYERS,
    MIXTRAL_TENSORS,
    NO_OTHERS,
    OLMOE_EXPERTS,
    OLMOE_LAYERS,
    PER_EXPERT,
    QWEN3_EXPERTS,
    QWEN3_LAYERS,
    OtherFields,
)
from anyorder.model.config import ModelConfig

REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
"""Fields that every config.json must have; transformers would take those of a published model."""

NULLS: Json = {
    "num_key_value_heads": 0, "head_dim": 0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "sliding_window": None, "attention_chunk_size": None,
}  # fmt: skip
"""What null says where it does not just stand for the value that is taken for a missing field; 0: it is derived."""

FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "partial_rotary_factor": (1, None),
    "per_layer_config": (None, {}),
    "quantization_config": (None,),
    "clip_qkv": (None,),
}
"""Fields that change any network in ways that are not supported: what they may be."""


# ------------------------------------------------------------------------------------------------ architectures


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of transformers' architectures.

    Attributes:
        model_type: its name in config.json.
        class_name: of its network with a vocabulary projection, in `architectures`.
        defaults: fields that may be missing, with transformers' values; of our fields, except for `eos_token_id`.
        always: what our fields are in all of its networks.
        biased_output: the output projection of attention has a bias where the others have.
        layers: how kinds of layers are said.
        others: fields that say something of ours in other words, such as a mixture of experts.
        tensors: those that have other names, or are cut otherwise, than here.
        part_of_heads: may rotate a part of each head.
        unwritten: fields that transformers follows where it finds them, but that other readers do not know.
        takes: further conditions on what transformers accepts.
    """

    model_type: str
    class_name: str
    defaults: Mapping[str, Any]
    layers: LayerFields
    others: OtherFields = NO_OTHERS
    tensors: tuple[Rule, ...] = ()
    part_of_heads: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)
    biased_output: bool = False
    unwritten: tuple[str, ...] = ()
    takes: Callable[[ModelConfig], bool] = lambda config: True


ALIKE: Json = {"head_dim": 0, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
"""Fields that have the same default in most architectures."""

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 0, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
        },
        biased_output=True,
        layers=ALL_FULL,
        takes=lambda config: (
            config.hidden_size % config.num_attention_heads == 0 and 0 <= config.initializer_range <= 1
        ),
    ),
    Architecture(
        model_type="mistral",
        class_name="MistralForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 8, "max_position_embeddings": 131_072,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
        },
        layers=ALL_ALIKE,
    ),
    Architecture(
        model_type="qwen2",
        class_name="Qwen2ForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 32, "max_position_embeddings": 32_768,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        },
        always={"attention_bias": True},
        layers=TYPED,
        unwritten=("head_dim",),
    ),
    Architecture(
        model_type="qwen3",
        class_name="Qwen3ForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32_768, "attention_bias": False,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        },
        always={"qk_norm": "learned"},
        biased_output=True,
        layers=TYPED,
    ),
    Architecture(
        model_type="smollm3",
        class_name="SmolLM3ForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 4, "max_position_embeddings": 32_768, "attention_bias": False, "mlp_bias": False,
            "tie_word_embeddings": True, "bos_token_id": 128_000, "eos_token_id": 128_001, "pad_token_id": 128_004,
        },
        biased_output=True,
        layers=TYPED_OR_NOPE,
        unwritten=("head_dim",),
    ),
    Architecture(
        model_type="mixtral",
        class_name="MixtralForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
        },
        layers=MIXTRAL_LAYERS,
        others=MIXTRAL_EXPERTS,
        tensors=MIXTRAL_TENSORS,
    ),
    Architecture(
        model_type="qwen3_moe",
        class_name="Qwen3MoeForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 4, "max_position_embeddings": 32_768, "attention_bias": False,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        },
        always={"qk_norm": "learned"},
        biased_output=True,
        layers=QWEN3_LAYERS,
        others=QWEN3_EXPERTS,
        tensors=PER_EXPERT,
    ),
    Architecture(
        model_type="olmoe",
        class_name="OlmoeForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 0, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "attention_bias": False,
            "bos_token_id": None, "eos_token_id": 50_279, "pad_token_id": 1,
        },
        always={"qk_norm": "learned-full-width"},
        biased_output=True,
        layers=OLMOE_LAYERS,
        others=OLMOE_EXPERTS,
        tensors=PER_EXPERT,
        unwritten=("head_dim",),
        takes=lambda config: config.hidden_size == config.num_attention_heads * config.head_dim,
    ),
    Architecture(
        model_type="llama4_text",
        class_name="Llama4ForCausalLM",
        defaults=ALIKE | {
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
            "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
        },
        biased_output=True,
        layers=LLAMA4_LAYERS,
        others=LLAMA4_EXPERTS,
        tensors=LLAMA4_TENSORS,
    ),
)  # fmt: skip
"""Those that transformers and vLLM know, the nearest first: a network is written as the first that can express it."""


def architecture_of(model_type: object) -> Architecture | None:
    """The architecture of this `model_type`, None where it is none of them."""
    return next((known for known in ARCHITECTURES if known.model_type == model_type), None)
