"""Mixtures of experts that diffuse, LLaDA-MoE and LLaDA2.x, of which transformers has no class of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyorder.checkpoints.architectures import ALIKE, Architecture
from anyorder.checkpoints.json_types import Json
from anyorder.checkpoints.layer_fields import LayerFields, Layers
from anyorder.checkpoints.layouts import Rule
from anyorder.checkpoints.mixture_fields import PER_EXPERT, OtherFields, with_experts
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.modes import Mode
from anyorder.utils.annotations import shown

FIELD_TYPES: dict[str, Any] = {
    "expert_intermediate_size": int,
    "moe_layer_freq": list[int] | None,
    "moe_router_enable_expert_bias": bool,
    "qk_layernorm": bool,
    "first_k_dense_replace": int,
    "n_group": int,
    "topk_group": int,
    "routed_scaling_factor": float,
    "num_shared_experts": int,
}
"""What the fields of this file may be."""


def _refuse_others(fields: Json, allowed: Mapping[str, tuple[Any, ...]], model: str) -> None:
    for name, values in allowed.items():
        if fields.get(name) not in values:
            raise UserError(
                f"{name} is {shown(fields[name])}: this version reads networks of {model} with {values[0]!r} only."
            )


def _with_part_of_heads(fields: Json) -> Json:
    """The fields with the share of a head that turns where that of transformers 5 is."""
    share = fields.get("partial_rotary_factor")
    named = fields.get("rope_parameters") or {"rope_theta": fields.get("rope_theta")}
    if share is None:
        return fields
    return fields | {"partial_rotary_factor": None, "rope_parameters": {"partial_rotary_factor": share, **named}}


def _write_part_of_heads(native: Json, mode: Mode) -> Json:
    share = native["rope_parameters"].get("partial_rotary_factor", 1.0)
    return {**native, "partial_rotary_factor": share, "mask_token_id": mode.mask_token_id, "use_cache": False}


# ---------------------------------------------------------------------------------------------- LLaDA-MoE

_LLADA_MOE_ALLOWED = {
    "moe_router_score_function": ("softmax", None),
    "routed_scaling_factor": (1, None),
    "router_num_group": (None, 1),
    "router_topk_group": (None, 1),
    "shared_expert_intermediate_size": (None, 0),
    "norm_topk_prob": (None, False),
}


def read_llada_moe(fields: Json) -> Json:
    """Fields of `LLADA_MOE` from those of a config.json."""
    _refuse_others(fields, _LLADA_MOE_ALLOWED, "LLaDA-MoE")
    # Where all layers have experts, no dense one has this width.
    width = fields.get("dense_intermediate_size") or fields.get("expert_intermediate_size")
    others = {name: value for name, value in fields.items() if name not in _LLADA_MOE_ALLOWED}
    return _with_part_of_heads(others | {"model_type": "llada-moe", "intermediate_size": width})


def write_llada_moe(native: Json, mode: Mode) -> Json:
    """The contrary."""
    fields = _write_part_of_heads(native, mode) | {"dense_intermediate_size": native["intermediate_size"]}
    del fields["intermediate_size"]
    return fields | {name: values[0] for name, values in _LLADA_MOE_ALLOWED.items()}


def _llada_moe_layers(fields: Json) -> Layers:
    number, frequency = fields["num_hidden_layers"], fields["moe_layer_freq"]
    frequency = [1] * number if frequency is None else frequency
    if len(frequency) != number or not set(frequency) <= {0, 1}:
        remedy = f"give 1 or 0 for each of the {number} layers, with and without experts"
        raise UserError(f"field 'moe_layer_freq' is {shown(frequency)}: {remedy}.")
    return with_experts((LayerKind(),) * number, [has == 1 for has in frequency])


def _read_llada_moe_experts(fields: Json) -> Json:
    experts = Experts(
        number=fields["num_experts"], chosen=fields["num_experts_per_tok"], width=fields["expert_intermediate_size"],
        bias="weight" if fields["moe_router_enable_expert_bias"] else "none",
    )  # fmt: skip
    return {"experts": experts, "qk_norm": "learned" if fields["qk_layernorm"] else "none"}


def _write_llada_moe_experts(config: ModelConfig) -> Json:
    if config.experts is None:
        return {}
    return {
        "num_experts": config.experts.number,
        "num_experts_per_tok": config.experts.chosen,
        "expert_intermediate_size": config.experts.width,
        "moe_router_enable_expert_bias": config.experts.bias == "weight",
        "qk_layernorm": config.qk_norm == "learned",
    }


LLADA_MOE = Architecture(
    model_type="llada-moe",
    class_name="LLaDAMoEModelLM",
    defaults=ALIKE | {
        "num_key_value_heads": 0, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "attention_bias": False,
        "bos_token_id": None, "eos_token_id": 156_892, "pad_token_id": None,
    },
    biased_output=True,
    layers=LayerFields(
        defaults={"moe_layer_freq": None},
        read=_llada_moe_layers,
        write=lambda layers: {"moe_layer_freq": [int(layer.experts) for layer in layers]},
    ),
    others=OtherFields(
        defaults={
            "num_experts": 64, "num_experts_per_tok": 8, "expert_intermediate_size": 1024,
            "moe_router_enable_expert_bias": False, "qk_layernorm": True,
        },
        read=_read_llada_moe_experts,
        write=_write_llada_moe_experts,
    ),
    tensors=PER_EXPERT,
    part_of_heads=True,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- LLaDA2.x

_LLADA2_ALLOWED = {
    "score_function": ("sigmoid", None),
    "use_qk_norm": (True, None),
    "use_qkv_bias": (False, None),
    "norm_head": (False, None),
}


def read_llada2(fields: Json) -> Json:
    """Fields of `LLADA2` from those of a config.json."""
    _refuse_others(fields, _LLADA2_ALLOWED, "LLaDA2")
    return _with_part_of_heads({name: value for name, value in fields.items() if name not in _LLADA2_ALLOWED})


def write_llada2(native: Json, mode: Mode) -> Json:
    """The contrary."""
    fields = _write_part_of_heads(native, mode) | {name: values[0] for name, values in _LLADA2_ALLOWED.items()}
    return fields | ({} if mode.block_length is None else {"block_size": mode.block_length})


def _llada2_layers(fields: Json) -> Layers:
    number, dense = fields["num_hidden_layers"], fields["first_k_dense_replace"]
    return with_experts((LayerKind(),) * number, [layer >= dense for layer in range(number)])


def _read_llada2_experts(fields: Json) -> Json:
    experts = Experts(
        number=fields["num_experts"], chosen=fields["num_experts_per_tok"], width=fields["moe_intermediate_size"],
        score="sigmoid", normalise=fields["norm_topk_prob"], scale=fields["routed_scaling_factor"],
        bias="choice" if fields["moe_router_enable_expert_bias"] else "none", groups=fields["n_group"],
        kept_groups=fields["topk_group"], shared_width=fields["num_shared_experts"] * fields["moe_intermediate_size"],
    )  # fmt: skip
    return {"experts": experts}


def _write_llada2_experts(config: ModelConfig) -> Json:
    experts = config.experts
    if experts is None:
        return {}
    return {
        "num_experts": experts.number,
        "num_experts_per_tok": experts.chosen,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.normalise,
        "routed_scaling_factor": float(experts.scale),
        "moe_router_enable_expert_bias": experts.bias == "choice",
        "n_group": experts.groups,
        "topk_group": experts.kept_groups,
        "num_shared_experts": experts.shared_width // experts.width,
    }


_OURS, _THEIRS = "model.layers.{}.self_attn.", "model.layers.{}.attention."

LLADA2 = Architecture(
    model_type="llada2_moe",
    class_name="LLaDA2MoeModelLM",
    defaults=ALIKE | {
        "num_key_value_heads": 0, "max_position_embeddings": 32_768, "bos_token_id": None, "eos_token_id": 156_892,
        "pad_token_id": None,
    },
    always={"qk_norm": "learned"},
    layers=LayerFields(
        defaults={"first_k_dense_replace": 0},
        read=_llada2_layers,
        write=lambda layers: {"first_k_dense_replace": sum(not layer.experts for layer in layers)},
    ),
    others=OtherFields(
        defaults={
            "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512, "norm_topk_prob": True,
            "routed_scaling_factor": 2.5, "moe_router_enable_expert_bias": True, "n_group": 8, "topk_group": 4,
            "num_shared_experts": 1,
        },
        read=_read_llada2_experts,
        write=_write_llada2_experts,
    ),
    tensors=(
        Rule(ours=("model.embed_tokens.weight",), theirs=("model.word_embeddings.weight",)),
        Rule(
            ours=tuple(f"{_OURS}{name}_proj.weight" for name in "qkv"), theirs=(_THEIRS + "query_key_value.weight",)
        ),
        Rule(ours=(_OURS + "o_proj.weight",), theirs=(_THEIRS + "dense.weight",)),
        Rule(ours=(_OURS + "q_norm.weight",), theirs=(_THEIRS + "query_layernorm.weight",)),
        Rule(ours=(_OURS + "k_norm.weight",), theirs=(_THEIRS + "key_layernorm.weight",)),
        *(
            Rule(
                ours=(f"model.layers.{{}}.mlp.shared_expert.{name}_proj.weight",),
                theirs=(f"model.layers.{{}}.mlp.shared_experts.{name}_proj.weight",),
            )
            for name in ("gate", "up", "down")
        ),
        *PER_EXPERT,
    ),
    part_of_heads=True,
)  # fmt: skip

DIFFUSION_MIXTURES = (LLADA_MOE, LLADA2)
"""Read as a form of masked diffusion alone."""
