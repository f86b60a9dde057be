"""Nemotron-Labs-Diffusion (arXiv 2607.05722): one network that writes from left to right and by blocks.

Its body is Ministral 3: the Llama network, with queries that grow in all layers, of which a field within
`rope_parameters` says how much. transformers has no class of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyorder.checkpoints.architectures import ALIKE, Architecture
from anyorder.checkpoints.json_types import Json
from anyorder.checkpoints.layer_fields import LayerFields, Layers, read_alike
from anyorder.checkpoints.layouts import Rule
from anyorder.checkpoints.weights import listed
from anyorder.errors import UserError
from anyorder.model.config import LayerKind
from anyorder.model.modes import Mode
from anyorder.model.query_scale import QueryScale
from anyorder.utils.annotations import shown

STRENGTH, PERIOD = "llama_4_scaling_beta", "original_max_position_embeddings"
"""Fields of `rope_parameters`."""

FIELD_TYPES: dict[str, Any] = {STRENGTH: float, PERIOD: int | None}
"""What the fields of this file may be."""


def _read_layers(fields: Json) -> Layers:
    """All alike; the factor of queries is 1 + strength * log(1 + floor(position / period))."""
    kind, strength, period = read_alike(fields)[0], fields[STRENGTH], fields[PERIOD]
    if strength and period is None:
        raise UserError(f"rope field {PERIOD!r} is missing, which {STRENGTH} needs: add it.")
    scale = QueryScale(strength=float(strength), period=period, offset=0) if strength else None
    return (LayerKind(window=kind.window, query_scale=scale),) * fields["num_hidden_layers"]


def _write_layers(layers: Layers) -> Json:
    scale = layers[0].query_scale
    grown = {STRENGTH: 0.0} if scale is None else {STRENGTH: float(scale.strength), PERIOD: scale.period}
    return {"sliding_window": layers[0].window, **grown}


MINISTRAL3 = Architecture(
    model_type="ministral3",
    class_name="Ministral3ForCausalLM",
    defaults=ALIKE | {
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262_144, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    },
    layers=LayerFields(
        defaults={"layer_types": None, "sliding_window": None, STRENGTH: 0.0, PERIOD: None},
        read=_read_layers,
        write=_write_layers,
    ),
)  # fmt: skip
"""Read as the body of Nemotron-Labs-Diffusion alone; the two fields of `rope_parameters` beside the others."""

PARADIGMS = ("bidirectional", "block_diff", "autoregressive")
"""What `dlm_paradigm` may be: how the published code trains; the network writes in the same ways by all of them."""

FIXED: Json = {"attention_bias": False, "mlp_bias": False}


def read_nemotron(fields: Json) -> Json:
    """Fields of `MINISTRAL3` from those of a config.json.

    Raises:
        UserError: biases, or a paradigm that is not known.
    """
    for name, value in FIXED.items():
        if fields.get(name) not in (value, None):
            raise UserError(
                f"{name} is {shown(fields[name])}: this version reads networks of Nemotron-Labs-Diffusion with "
                f"{value!r} only."
            )
    if fields.get("dlm_paradigm") not in (*PARADIGMS, None):
        raise UserError(f"dlm_paradigm is {shown(fields['dlm_paradigm'])}: this version reads {listed(PARADIGMS)}.")
    rope = fields.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    return {**fields, "model_type": "ministral3", **{name: rope.get(name) for name in (STRENGTH, PERIOD)}}


def write_nemotron(native: Json, mode: Mode) -> Json:
    """The contrary."""
    rope = native["rope_parameters"] | {name: native[name] for name in (STRENGTH, PERIOD) if name in native}
    elsewhere = (STRENGTH, PERIOD, "rope_theta", "rope_scaling")  # which within transformers 5 would replace the others
    return {
        **{name: value for name, value in native.items() if name not in elsewhere},
        **FIXED,
        "rope_parameters": rope,
        "mask_token_id": mode.mask_token_id,
        "block_size": mode.block_length,
        "dlm_paradigm": PARADIGMS[0],
        "dlm_loss_weight": None,
        "ar_loss_weight": 1.0,
        "attention_dropout": 0.0,
        "use_cache": False,
    }


_PARTS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
    "post_attention_layernorm",
)  # fmt: skip

NEMOTRON_TENSORS = (
    Rule(ours=("lm_head.weight",), theirs=("diffusion_head.weight",)),
    *(
        Rule(ours=(f"model.{name}.weight",), theirs=(f"encoder.{name}.weight",))
        for name in ("embed_tokens", "norm", *(f"layers.{{}}.{part}" for part in _PARTS))
    ),
)
