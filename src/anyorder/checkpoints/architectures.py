"""The architectures that networks are read from and written as, as data.

Each is one of transformers' classes: which fields its `config.json` has, what transformers takes where one is missing,
what is the same in all of its networks, and how it says of which kind each layer is. The tensors have the same names
in all of them, and here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.utils.annotations import shown

Json = dict[str, Any]
Layers = tuple[LayerKind, ...]

REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
"""Fields that every config.json must have; transformers would take those of a published model."""

NULLS: Json = {
    "num_key_value_heads": 0, "head_dim": 0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "sliding_window": None,
}  # fmt: skip
"""What null says where it does not just stand for the value that is taken for a missing field; 0: it is derived."""

FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "partial_rotary_factor": (1, None),
    "per_layer_config": (None, {}),
    "quantization_config": (None,),
}
"""Fields that change any network in ways that are not supported: what they may be."""


# ------------------------------------------------------------------------------------------------ kinds of layers

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class LayerFields:
    """How an architecture says of which kind its layers are.

    Attributes:
        defaults: the fields that say so, with transformers' values for missing ones.
        read: kinds from all fields, none of which is missing.
        write: fields that say so if the architecture can; whether it can is seen when they are read back.
    """

    defaults: Mapping[str, Any]
    read: Callable[[Json], Layers]
    write: Callable[[Layers], Json]


FIELD_TYPES: dict[str, Any] = {
    "sliding_window": int | None,
    "use_sliding_window": bool,
    "max_window_layers": int,
    "layer_types": list[str] | None,
    "no_rope_layers": list[int] | None,
    "no_rope_layer_interval": int,
}
"""What the fields of all `LayerFields` may be."""


def _read_alike(fields: Json) -> Layers:
    """All layers are of one kind: with a window if there is one."""
    window = fields.get("sliding_window")
    expected = FULL if window is None else SLIDING
    if any(name != expected for name in fields["layer_types"] or ()):
        remedy = f"give {expected!r} for all, since networks of this model_type have one kind of layer"
        raise UserError(f"field 'layer_types' is {shown(fields['layer_types'])}: {remedy}.")
    return (LayerKind(window=window),) * fields["num_hidden_layers"]


def _read_typed(fields: Json) -> Layers:
    """`layer_types`, or else a window in all layers from `max_window_layers` on."""
    last_full = fields["max_window_layers"]
    windowed = [_window(fields) is not None and index >= last_full for index in range(fields["num_hidden_layers"])]
    return _with_types(fields, windowed, [True] * len(windowed))


def _read_nope(fields: Json) -> Layers:
    """`no_rope_layers`, in which 1 means that a layer has rotary; windows are in those without unless given."""
    number, rotary, interval = (
        fields[name] for name in ("num_hidden_layers", "no_rope_layers", "no_rope_layer_interval")
    )
    if rotary is None:
        if interval < 1:
            raise UserError(f"field 'no_rope_layer_interval' is {interval}: give a whole number above 0.")
        rotary = [int((index + 1) % interval != 0) for index in range(number)]
    if len(rotary) < number or not set(rotary) <= {0, 1}:
        remedy = f"give 1 or 0 for each of the {number} layers, with and without rotary"
        raise UserError(f"field 'no_rope_layers' is {shown(rotary)}: {remedy}.")
    rotary = [bool(has) for has in rotary[:number]]
    return _with_types(fields, [_window(fields) is not None and not has for has in rotary], rotary)


def _window(fields: Json) -> int | None:
    return fields["sliding_window"] if fields["use_sliding_window"] else None


def _with_types(fields: Json, windowed: list[bool], rotary: list[bool]) -> Layers:
    """Kinds of layers, of which `layer_types` says before `windowed` which have a window."""
    types, window = fields["layer_types"], _window(fields)
    if types is not None:
        if len(types) != len(windowed) or not set(types) <= {FULL, SLIDING}:
            remedy = f"give {FULL!r} or {SLIDING!r} for each of the {len(windowed)} layers"
            raise UserError(f"field 'layer_types' is {shown(types)}: {remedy}.")
        windowed = [name == SLIDING for name in types]
        if any(windowed) and window is None:
            remedy = "set use_sliding_window to true and sliding_window to the number of tokens"
            raise UserError(f"field 'layer_types' has {SLIDING!r}, but there is no window: {remedy}.")
    return tuple(
        LayerKind(rotary=has, window=window if narrow else None) for has, narrow in zip(rotary, windowed, strict=True)
    )


def _write_typed(layers: Layers) -> Json:
    windows = [layer.window for layer in layers]
    first = next((index for index, window in enumerate(windows) if window is not None), len(layers))
    return {
        "use_sliding_window": first < len(layers),
        "sliding_window": windows[first] if first < len(layers) else None,
        "max_window_layers": first,
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }


def _write_nope(layers: Layers) -> Json:
    fields = _write_typed(layers) | {"no_rope_layers": [int(layer.rotary is not False) for layer in layers]}
    del fields["max_window_layers"]
    return fields


ALL_FULL = LayerFields(defaults={"layer_types": None}, read=_read_alike, write=lambda layers: {})
ALL_ALIKE = LayerFields(
    defaults={"layer_types": None, "sliding_window": 4096},
    read=_read_alike,
    write=lambda layers: {"sliding_window": layers[0].window},
)
TYPED = LayerFields(
    defaults={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None},
    read=_read_typed,
    write=_write_typed,
)
TYPED_OR_NOPE = LayerFields(
    defaults={
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    read=_read_nope,
    write=_write_nope,
)


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
        unwritten: fields that transformers follows where it finds them, but that other readers do not know.
        takes: further conditions on what transformers accepts.
    """

    model_type: str
    class_name: str
    defaults: Mapping[str, Any]
    layers: LayerFields
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
)  # fmt: skip
"""Those that transformers and vLLM know, the nearest first: a network is written as the first that can express it."""


def architecture_of(model_type: object) -> Architecture | None:
    """The architecture of this `model_type`, None where it is none of them."""
    return next((known for known in ARCHITECTURES if known.model_type == model_type), None)
