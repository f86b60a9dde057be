"""How transformers' mixtures of experts say what they are, as data: Mixtral, Qwen3-MoE, OLMoE, Llama 4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyorder.checkpoints.json_types import Json
from anyorder.checkpoints.layer_fields import FULL, LayerFields, Layers, nope_layers, read_alike
from anyorder.checkpoints.layouts import Rule
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.query_scale import QueryScale
from anyorder.utils.annotations import shown


@dataclass(frozen=True, kw_only=True)
class OtherFields:
    """Fields that say something of ours in other words.

    Attributes:
        defaults: the fields, with transformers' values for missing ones.
        read: fields of ours from all fields, none of which is missing.
        write: the contrary; whether it says all is seen when it is read back.
        other_names: of the fields, in files of other versions.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Json], Json] = lambda fields: {}
    write: Callable[[ModelConfig], Json] = lambda config: {}
    other_names: Mapping[str, str] = field(default_factory=dict)


NO_OTHERS = OtherFields()

FIELD_TYPES: dict[str, Any] = {
    "num_local_experts": int,
    "num_experts": int,
    "num_experts_per_tok": int,
    "norm_topk_prob": bool,
    "moe_intermediate_size": int,
    "decoder_sparse_step": int,
    "mlp_only_layers": list[int] | None,
    "intermediate_size_mlp": int,
    "interleave_moe_layer_step": int,
    "moe_layers": list[int] | None,
    "use_qk_norm": bool,
    "attention_chunk_size": int | None,
    "attn_temperature_tuning": bool,
    "floor_scale": int | float,
    "attn_scale": float,
}
"""What the fields of this file may be."""


def with_experts(layers: Layers, has: Sequence[bool]) -> Layers:
    """The same kinds, with experts where `has` says so."""
    return tuple(dataclasses.replace(kind, experts=experts) for kind, experts in zip(layers, has, strict=True))


def in_all(layers: Layers) -> Layers:
    """The same kinds, all with experts."""
    return with_experts(layers, [True] * len(layers))


def _layer_numbers(fields: Json, name: str) -> list[int]:
    """A list of layers, each of which the network has."""
    numbers: list[int] = fields[name] or []
    if not set(numbers) <= set(range(fields["num_hidden_layers"])):
        remedy = f"give numbers of layers, from 0 to {fields['num_hidden_layers'] - 1}"
        raise UserError(f"field {name!r} is {shown(numbers)}: {remedy}.")
    return numbers


def _step(fields: Json, name: str) -> int:
    if fields[name] < 1:
        raise UserError(f"field {name!r} is {fields[name]}: give a whole number above 0.")
    return int(fields[name])


# ---------------------------------------------------------------------------------------------- tensors


EXPERTS = "model.layers.{}.mlp.experts."

PER_EXPERT = (
    Rule(
        ours=(EXPERTS + "gate_up_proj",),
        theirs=(EXPERTS + "{expert}.gate_proj.weight", EXPERTS + "{expert}.up_proj.weight"),
    ),
    Rule(ours=(EXPERTS + "down_proj",), theirs=(EXPERTS + "{expert}.down_proj.weight",)),
)
"""A tensor for each matrix of each expert, as on the hub; transformers and networks here have them in one."""

_MIXTRAL = "model.layers.{}.block_sparse_moe."

MIXTRAL_TENSORS = (
    Rule(
        ours=(EXPERTS + "gate_up_proj",),
        theirs=(_MIXTRAL + "experts.{expert}.w1.weight", _MIXTRAL + "experts.{expert}.w3.weight"),
    ),
    Rule(ours=(EXPERTS + "down_proj",), theirs=(_MIXTRAL + "experts.{expert}.w2.weight",)),
    Rule(ours=("model.layers.{}.mlp.gate.weight",), theirs=(_MIXTRAL + "gate.weight",)),
)

_HERE, _THERE = "model.layers.{}.mlp.", "model.layers.{}.feed_forward."

LLAMA4_TENSORS = (
    *(
        Rule(
            ours=(f"model.layers.{{}}.self_attn.{name}_proj.{part}",),
            theirs=(f"model.layers.{{}}.self_attn.{name}_proj.{part}",),
            interleaved=True,
        )
        for name in ("q", "k")
        for part in ("weight", "bias")
    ),
    *(
        Rule(ours=(f"{_HERE}{place}{name}_proj.weight",), theirs=(f"{_THERE}{place}{name}_proj.weight",))
        for place in ("", "shared_expert.")
        for name in ("gate", "up", "down")
    ),
    Rule(ours=(_HERE + "gate.weight",), theirs=(_THERE + "router.weight",)),
    *(
        Rule(ours=(f"{_HERE}experts.{name}",), theirs=(f"{_THERE}experts.{name}",), transposed=True)
        for name in ("gate_up_proj", "down_proj")
    ),
)


# ---------------------------------------------------------------------------------------------- Mixtral


def _write_mixtral(config: ModelConfig) -> Json:
    if config.experts is None:
        return {}
    return {
        "intermediate_size": config.experts.width,
        "num_local_experts": config.experts.number,
        "num_experts_per_tok": config.experts.chosen,
    }


MIXTRAL_LAYERS = LayerFields(
    defaults={"layer_types": None, "sliding_window": None},
    read=lambda fields: in_all(read_alike(fields)),
    write=lambda layers: {"sliding_window": layers[0].window},
)
MIXTRAL_EXPERTS = OtherFields(
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
    read=lambda fields: {
        "experts": Experts(
            number=fields["num_local_experts"], chosen=fields["num_experts_per_tok"],
            width=fields["intermediate_size"], normalise=True,
        )
    },
    write=_write_mixtral,
    other_names={"num_experts": "num_local_experts"},
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- OLMoE, Qwen3-MoE


def _read_softmax(fields: Json, width: str) -> Json:
    experts = Experts(
        number=fields["num_experts"], chosen=fields["num_experts_per_tok"], width=fields[width],
        normalise=fields["norm_topk_prob"],
    )  # fmt: skip
    return {"experts": experts}


def _write_softmax(config: ModelConfig, width: str) -> Json:
    if config.experts is None:
        return {}
    return {
        width: config.experts.width,
        "num_experts": config.experts.number,
        "num_experts_per_tok": config.experts.chosen,
        "norm_topk_prob": config.experts.normalise,
    }


OLMOE_LAYERS = LayerFields(
    defaults={"layer_types": None}, read=lambda fields: in_all(read_alike(fields)), write=lambda layers: {}
)
OLMOE_EXPERTS = OtherFields(
    defaults={"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
    read=lambda fields: _read_softmax(fields, "intermediate_size"),
    write=lambda config: _write_softmax(config, "intermediate_size"),
    other_names={"num_local_experts": "num_experts"},
)


def _read_qwen3_layers(fields: Json) -> Layers:
    """All have the window, if there is one; experts are in every `decoder_sparse_step`-th but `mlp_only_layers`."""
    window = fields["sliding_window"] if fields["use_sliding_window"] else None
    dense, step = _layer_numbers(fields, "mlp_only_layers"), _step(fields, "decoder_sparse_step")
    numbers = range(fields["num_hidden_layers"])
    has = [number not in dense and (number + 1) % step == 0 for number in numbers]
    return with_experts(tuple(LayerKind(window=window) for _ in numbers), has)


def _write_qwen3_layers(layers: Layers) -> Json:
    return {
        "use_sliding_window": layers[0].window is not None,
        "sliding_window": layers[0].window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [number for number, layer in enumerate(layers) if not layer.experts],
    }


QWEN3_LAYERS = LayerFields(
    defaults={
        "use_sliding_window": False, "sliding_window": 4096, "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
    read=_read_qwen3_layers,
    write=_write_qwen3_layers,
)  # fmt: skip
QWEN3_EXPERTS = OtherFields(
    defaults={"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": False, "moe_intermediate_size": 768},
    read=lambda fields: _read_softmax(fields, "moe_intermediate_size"),
    write=lambda config: _write_softmax(config, "moe_intermediate_size"),
    other_names={"num_local_experts": "num_experts"},
)


# ---------------------------------------------------------------------------------------------- Llama 4

CHUNKED = "chunked_attention"

USUAL_CHUNK = 8192


def _read_llama4_layers(fields: Json) -> Layers:
    """Chunks where there is rotary, unless `layer_types` says where; growing queries where there is none."""
    chunk, number = fields["attention_chunk_size"], fields["num_hidden_layers"]
    if chunk is not None and chunk < 1:
        raise UserError(f"field 'attention_chunk_size' is {chunk}: give a whole number above 0, or null for no chunks.")
    # transformers takes an empty list for none given.
    rotary = nope_layers(fields | {"no_rope_layers": fields["no_rope_layers"] or None})
    types = fields["layer_types"]
    if types is None:
        types = [CHUNKED if has and chunk is not None else FULL for has in rotary]
    if len(types) != number or not set(types) <= {CHUNKED, FULL}:
        remedy = f"give {CHUNKED!r} or {FULL!r} for each of the {number} layers"
        raise UserError(f"field 'layer_types' is {shown(types)}: {remedy}.")
    if CHUNKED in types and chunk is None:
        remedy = "set attention_chunk_size to the number of tokens"
        raise UserError(f"field 'layer_types' has {CHUNKED!r}, but there is no chunk: {remedy}.")
    scale = QueryScale(strength=float(fields["attn_scale"]), period=int(fields["floor_scale"]))
    kinds = tuple(
        LayerKind(
            rotary=has,
            chunk=chunk if kind == CHUNKED else None,
            query_scale=scale if fields["attn_temperature_tuning"] and not has else None,
        )
        for has, kind in zip(rotary, types, strict=True)
    )
    step = _step(fields, "interleave_moe_layer_step")
    with_them = range(step - 1, number, step)
    if fields["moe_layers"] is not None:
        with_them = _layer_numbers(fields, "moe_layers")  # type: ignore[assignment]
    return with_experts(kinds, [layer in with_them for layer in range(number)])


def _write_llama4_layers(layers: Layers) -> Json:
    scales = [layer.query_scale for layer in layers if layer.query_scale is not None]
    grown = {"attn_scale": scales[0].strength, "floor_scale": scales[0].period} if scales else {}
    return {
        "no_rope_layers": [int(layer.rotary is not False) for layer in layers],
        # Never null, with which transformers 5.16 fails even where no layer has chunks.
        "attention_chunk_size": next((layer.chunk for layer in layers if layer.chunk is not None), USUAL_CHUNK),
        "layer_types": [FULL if layer.chunk is None else CHUNKED for layer in layers],
        "attn_temperature_tuning": bool(scales),
        **grown,
        "moe_layers": [number for number, layer in enumerate(layers) if layer.experts],
    }


def _read_llama4(fields: Json) -> Json:
    width = fields["intermediate_size"]
    experts = Experts(
        number=fields["num_local_experts"], chosen=fields["num_experts_per_tok"], width=width, score="sigmoid",
        weighted="input", shared_width=width,
    )  # fmt: skip
    return {
        "experts": experts,
        "intermediate_size": fields["intermediate_size_mlp"],
        "qk_norm": "weightless" if fields["use_qk_norm"] else "none",
    }


def _write_llama4(config: ModelConfig) -> Json:
    fields = {"intermediate_size_mlp": config.intermediate_size, "use_qk_norm": config.qk_norm == "weightless"}
    if config.experts is None:
        return fields
    return fields | {
        "intermediate_size": config.experts.width,
        "num_local_experts": config.experts.number,
        "num_experts_per_tok": config.experts.chosen,
    }


LLAMA4_LAYERS = LayerFields(
    defaults={
        "layer_types": None, "no_rope_layers": None, "no_rope_layer_interval": 4, "attention_chunk_size": USUAL_CHUNK,
        "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1, "interleave_moe_layer_step": 1,
        "moe_layers": None,
    },
    read=_read_llama4_layers,
    write=_write_llama4_layers,
)  # fmt: skip
LLAMA4_EXPERTS = OtherFields(
    defaults={"num_local_experts": 16, "num_experts_per_tok": 1, "intermediate_size_mlp": 16_384, "use_qk_norm": True},
    read=_read_llama4,
    write=_write_llama4,
    other_names={"num_experts": "num_local_experts"},
)
