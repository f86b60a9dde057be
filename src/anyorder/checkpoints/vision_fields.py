"""Llama 4 with vision in Hugging Face's form: a text network within it, an encoder beside it, and what both are called.

`config.json` nests both as `text_config` and `vision_config`; tensors of the text begin with `language_model.`, and
those of the encoder have the same names there and here.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path

from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.json_types import Json, check_types
from anyorder.checkpoints.layouts import Rule
from anyorder.checkpoints.mixture_fields import LLAMA4_TENSORS
from anyorder.checkpoints.places import is_file
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.vision import VisionConfig
from anyorder.utils.annotations import shown

MODEL_TYPE, CLASS_NAME = "llama4", "Llama4ForConditionalGeneration"

TEXT = "llama4_text"
"""The `model_type` of the text network."""

PREPROCESSOR = "preprocessor_config.json"
"""What images are made into before the network sees them; of it, only the number of tiles differs between networks."""

_LAYER = "model.layers.{}."

SAME_WITHIN = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(f"{_LAYER}{norm}_layernorm.weight" for norm in ("input", "post_attention")),
    *(f"{_LAYER}self_attn.{name}_proj.{part}" for name in ("v", "o") for part in ("weight", "bias")),
)
"""Tensors of the text network, whose names differ in how they begin alone."""

TENSORS = tuple(
    dataclasses.replace(rule, theirs=tuple(f"language_model.{name}" for name in rule.theirs))
    for rule in (*(Rule(ours=(name,), theirs=(name,)) for name in SAME_WITHIN), *LLAMA4_TENSORS)
)
"""Of the text network."""

DEFAULTS: Json = {
    "hidden_size": 768, "num_hidden_layers": 34, "num_attention_heads": 16, "intermediate_size": 5632,
    "vision_output_dim": 7680, "image_size": 448, "patch_size": 14, "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 4096, "projector_output_dim": 4096, "rope_theta": 10_000.0,
}  # fmt: skip
"""Fields of `vision_config` that may be missing, with transformers' values."""

FIXED: Json = {
    "hidden_act": "gelu", "num_channels": 3, "vision_feature_select_strategy": "default",
    "multi_modal_projector_bias": False,
}  # fmt: skip
"""Fields that change any network in ways that are not supported: what they may be."""

OF_BOTH = ("eos_token_id", "eos_token_ids", "quantization_config")
"""Fields beside `text_config` that hold for the text network."""

START_BEFORE, END_BEFORE = 12, 11
"""Ids that the tokens for the begin and the end of an image stand before that for a row, in Llama 4's vocabulary."""


def text_fields(fields: Json) -> Json:
    """The `config.json` of the text network within another; what stands beside it of both goes before its own.

    Raises:
        UserError: there is none.
    """
    text = fields.get("text_config")
    if not isinstance(text, Mapping):
        raise UserError(f"field 'text_config' is {shown(text)}: give the fields of the text network.")
    if (kind := text.get("model_type", TEXT)) != TEXT:
        raise UserError(f"model_type of text_config is {shown(kind)}: this version reads {TEXT!r} beside vision.")
    beside = {name: fields[name] for name in OF_BOTH if name in fields}
    return {**text, **beside, "model_type": TEXT}


def vision_of(fields: Json) -> VisionConfig:
    """The encoder that a `config.json` describes.

    Raises:
        UserError: a field is wrong, or the encoder is of a kind that is not supported.
    """
    own = fields.get("vision_config")
    if not isinstance(own, Mapping):
        raise UserError(f"field 'vision_config' is {shown(own)}: give the fields of the encoder.")
    for name, allowed in FIXED.items():
        if own.get(name) not in (allowed, None):
            raise UserError(f"field {name!r} of vision_config is {shown(own[name])}: this version reads {allowed!r}.")
    known = {name: default if own.get(name) is None else own[name] for name, default in DEFAULTS.items()}
    rope = own.get("rope_parameters") or {}
    known["rope_theta"] = rope.get("rope_theta", known["rope_theta"]) if isinstance(rope, Mapping) else None
    for name in ("image_size", "patch_size"):
        if isinstance(known[name], list) and len(set(known[name])) == 1:
            known[name] = known[name][0]
    whole = {name: int for name, default in DEFAULTS.items() if isinstance(default, int)}
    check_types(known, whole | {"pixel_shuffle_ratio": float, "rope_theta": float})
    ratio, output = known["pixel_shuffle_ratio"], known["vision_output_dim"]
    if not 0 < ratio <= 1 or round(1 / ratio) * ratio != 1:
        raise UserError(f"field 'pixel_shuffle_ratio' is {ratio}: give 1 divided by a whole number, such as 0.5.")
    expected = {
        "projector_input_dim": output, "projector_output_dim": output,
        "intermediate_size": known["hidden_size"] * round(1 / ratio) ** 2,
    }  # fmt: skip
    for name, size in expected.items():
        if known[name] != size:
            remedy = f"give {size}, which the other fields of vision_config make it"
            raise UserError(f"field {name!r} of vision_config is {known[name]}: {remedy}.")
    beside = {"max_tiles": fields.get("max_patches", VisionConfig.max_tiles)}
    token = fields.get("image_token_index", fields.get("image_token_id", VisionConfig.image_token_id))
    beside |= {"image_token_id": token}
    check_types(beside, typing.get_type_hints(VisionConfig))
    return VisionConfig(
        hidden_size=known["hidden_size"], intermediate_size=known["intermediate_size"], output_size=output,
        num_hidden_layers=known["num_hidden_layers"], num_attention_heads=known["num_attention_heads"],
        image_size=known["image_size"], patch_size=known["patch_size"], merge=round(1 / ratio),
        rope_theta=known["rope_theta"], **beside,
    )  # fmt: skip


def with_preprocessor(fields: Json, folder: Path) -> Json:
    """The fields of a `config.json`, with what `preprocessor_config.json` says of the number of tiles.

    Raises:
        UserError: it is no JSON, or names images of another form.
    """
    if fields.get("model_type") != MODEL_TYPE or not is_file(folder / PREPROCESSOR):
        return fields
    said = read_json(folder / PREPROCESSOR)
    kind = said.get("image_processor_type", "Llama4ImageProcessor")
    if not str(kind).startswith("Llama4ImageProcessor") or said.get("resize_to_max_canvas"):
        what = f"{kind!r}, resize_to_max_canvas {said.get('resize_to_max_canvas', False)}"
        raise UserError(f"{str(folder / PREPROCESSOR)!r} has {what}: this version reads Llama4ImageProcessor without.")
    return fields if said.get("max_patches") is None else fields | {"max_patches": said["max_patches"]}


def preprocessor_json(vision: VisionConfig) -> Json:
    """A `preprocessor_config.json`, by which transformers finds its image processor."""
    side = {"height": vision.image_size, "width": vision.image_size}
    return {
        "image_processor_type": "Llama4ImageProcessorFast",
        "processor_class": "Llama4Processor",
        "max_patches": vision.max_tiles,
        "resize_to_max_canvas": False,
        "size": side,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def whole_fields(text: Json, config: ModelConfig) -> Json | None:
    """A `config.json` of a network with vision around that of its text; None where it cannot express the encoder."""
    vision = config.vision
    if vision is None or vision.intermediate_size != vision.hidden_size * vision.merge**2:
        return None
    first = vision.image_token_id
    named = {"boi_token_index": first - START_BEFORE, "eoi_token_index": first - END_BEFORE}
    return {
        "model_type": MODEL_TYPE,
        "architectures": [CLASS_NAME],
        "text_config": {name: value for name, value in text.items() if name != "architectures"},
        "vision_config": {
            "model_type": "llama4_vision_model",
            **FIXED,
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "intermediate_size": vision.intermediate_size,
            "vision_output_dim": vision.output_size,
            "projector_input_dim": vision.output_size,
            "projector_output_dim": vision.output_size,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "pixel_shuffle_ratio": 1 / vision.merge,
            "rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta},
            "rope_theta": vision.rope_theta,
        },
        "image_token_index": first,
        **(named if first >= START_BEFORE else {}),
        "tie_word_embeddings": config.tie_word_embeddings,
    }
