"""Meta's `params.json`: the fields of Llama 1 to 4, and what they leave unsaid."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.json_types import check_types
from anyorder.checkpoints.tokenizer import LLAMA3_SPECIAL, is_tiktoken
from anyorder.checkpoints.weights import listed
from anyorder.errors import UserError
from anyorder.model.config import MOST_LAYERS, LayerKind, Real, Whole
from anyorder.model.experts import Experts
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import Llama3Rotary, Rotary
from anyorder.model.vision import VisionConfig
from anyorder.utils.annotations import AtMost, check_fields, shown

Json = dict[str, Any]

Record = typing.TypeVar("Record")

WITHOUT_MEANING = ("ffn_exp", "max_batch_size")
"""Fields that add nothing: the width of experts is that of their tensors."""

NOT_READ = {
    "quantization_args": "give the weights as they were before they were rounded",
    "lora_args": "give the weights with the adapter merged into them",
}
"""Fields that may be null, with what to do where they are not."""


@dataclass(frozen=True, kw_only=True)
class MoEArgs:
    """The field `moe_args`: the mixture of experts.

    Attributes:
        num_experts: of a layer.
        top_k: experts that read a row.
        interleave_moe_layer_step: each layer whose number, from 1, it divides has experts.
        capacity_factor, auto_scale_F: add nothing: the width of experts is that of their tensors.
    """

    num_experts: Whole
    top_k: Whole = 1
    interleave_moe_layer_step: Whole = 1
    capacity_factor: Real = 1.0
    auto_scale_F: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "field {!r} of moe_args")
        for name in ("num_experts", "top_k", "interleave_moe_layer_step"):
            if getattr(self, name) < 1:
                raise UserError(f"field {name!r} of moe_args is {getattr(self, name)}: give a whole number above 0.")


@dataclass(frozen=True, kw_only=True)
class Area:
    """Height and width, in pixels."""

    height: Whole
    width: Whole


@dataclass(frozen=True, kw_only=True)
class VisionArgs:
    """The field `vision_args`: the encoder of images.

    Attributes:
        image_size: of a tile.
        patch_size: of a patch.
        dim: width of a row.
        mlp_ratio: inner width of the feed-forward networks, in `dim`.
        output_dim: width of the adapter.
        pixel_shuffle_ratio: 1 / n, where n x n patches become a row.
    """

    image_size: Area
    patch_size: Area
    dim: Whole
    n_layers: Annotated[int, AtMost(MOST_LAYERS)]
    n_heads: Whole
    mlp_ratio: Real
    output_dim: Whole
    pixel_shuffle_ratio: Real

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            area = getattr(self, name)
            if area.height != area.width:
                raise UserError(
                    f"field {name!r} of vision_args is {area.height} x {area.width}: this version reads squares only."
                )
        if not 0 < self.pixel_shuffle_ratio <= 1 or round(1 / self.pixel_shuffle_ratio) * self.pixel_shuffle_ratio != 1:
            raise UserError(
                f"field 'pixel_shuffle_ratio' of vision_args is {self.pixel_shuffle_ratio}: give 1 divided by a whole "
                "number, such as 0.5."
            )


@dataclass(frozen=True, kw_only=True)
class Params:
    """A `params.json`, under Meta's names; None where the tensors or this module tell.

    Attributes:
        dim: width of a row.
        n_kv_heads: as many as query heads unless given.
        vocab_size: -1 is that of the embedding.
        head_dim: of which Meta's code takes no notice; `dim // n_heads`.
        use_qk_norm: weightless norms of query and key heads in layers with rotary.
        nope_layer_interval: each layer whose number, from 1, it divides has no rotary.
        attention_chunk_size: layers with rotary see their own chunk of so many positions.
        attn_temperature_tuning: queries of layers without rotary grow with their position, by `floor_scale` and
            `attn_scale`.
        moe_args, vision_args: of networks with experts, and with vision.
        multiple_of, ffn_dim_multiplier: tell the width of dense layers where there is none.

    Raises:
        UserError: a field has a value that no network can have.
    """

    dim: Whole
    n_layers: Annotated[int, AtMost(MOST_LAYERS)]
    n_heads: Whole
    n_kv_heads: Whole | None = None
    head_dim: Whole | None = None
    vocab_size: Whole = -1
    norm_eps: Real = 1e-5
    rope_theta: Real | None = None
    use_scaled_rope: bool = False
    rope_scaling_factor: Real | None = None
    rope_high_freq_factor: Real | None = None
    max_seq_len: Whole | None = None
    use_qk_norm: bool | None = None
    nope_layer_interval: Whole | None = None
    attention_chunk_size: Whole | None = None
    attn_temperature_tuning: bool = False
    floor_scale: Real = 8192.0
    attn_scale: Real = 0.1
    moe_args: MoEArgs | None = None
    vision_args: VisionArgs | None = None
    multiple_of: Whole = 256
    ffn_dim_multiplier: Real | None = None

    def __post_init__(self) -> None:
        check_fields(self, "field {!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if field.name == "vocab_size" and (value < -1 or value == 0):
                raise UserError(f"field 'vocab_size' is {value}: give the number of tokens, or -1 for the embedding's.")
            if field.name not in ("vocab_size", "attn_scale") and not value > 0:
                raise UserError(f"field {field.name!r} is {value}: give a number above 0.")
        if self.head_dim not in (None, self.dim // self.n_heads):
            remedy = f"Meta's code takes dim // n_heads, which is {self.dim // self.n_heads}, so give that"
            raise UserError(f"field 'head_dim' is {self.head_dim}: {remedy}.")
        if self.floor_scale != int(self.floor_scale):
            raise UserError(f"field 'floor_scale' is {self.floor_scale}: give a whole number of positions.")

    @property
    def is_llama4(self) -> bool:
        """Whether there is a field of the code of Llama 4, whose scaled angles are others."""
        return any(
            value is not None for value in (self.use_qk_norm, self.nope_layer_interval, self.attention_chunk_size)
        )

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        every = self.nope_layer_interval
        chunked, scale = LayerKind(chunk=self.attention_chunk_size), None
        if self.attn_temperature_tuning:
            scale = QueryScale(strength=self.attn_scale, period=int(self.floor_scale))
        step = 0 if self.moe_args is None else self.moe_args.interleave_moe_layer_step
        return tuple(
            dataclasses.replace(
                LayerKind(rotary=False, query_scale=scale) if every is not None and number % every == 0 else chunked,
                experts=step > 0 and number % step == 0,
            )
            for number in range(1, self.n_layers + 1)
        )

    def experts(self, width: int) -> Experts | None:
        """The mixture of experts of this inner width."""
        if self.moe_args is None:
            return None
        return Experts(
            number=self.moe_args.num_experts, chosen=self.moe_args.top_k, width=width, score="sigmoid",
            weighted="input", shared_width=width,
        )  # fmt: skip

    @property
    def dense_width(self) -> int:
        """Inner width that layers without experts would have, by Meta's code."""
        width = int((self.ffn_dim_multiplier or 1) * int(2 * 4 * self.dim / 3))
        return -(-width // self.multiple_of) * self.multiple_of

    def vision(self, vocab_size: int) -> VisionConfig | None:
        """The encoder of images.

        Raises:
            UserError: the vocabulary lacks Llama 4's special tokens, or see `VisionConfig`.
        """
        args = self.vision_args
        if args is None:
            return None
        if vocab_size < LLAMA4_SPECIAL:
            remedy = f"give the network's vocabulary, which ends in Llama 4's {LLAMA4_SPECIAL} special tokens"
            raise UserError(f"field 'vocab_size' is {vocab_size} beside vision_args: {remedy}.")
        return VisionConfig(
            hidden_size=args.dim, intermediate_size=int(args.mlp_ratio * args.dim), num_hidden_layers=args.n_layers,
            num_attention_heads=args.n_heads, output_size=args.output_dim, image_size=args.image_size.height,
            patch_size=args.patch_size.height, merge=round(1 / args.pixel_shuffle_ratio),
            image_token_id=vocab_size - LLAMA4_SPECIAL + PATCH_TOKEN,
        )  # fmt: skip


def read_params(file: Path) -> Params:
    """The fields of a `params.json` that describe the network, checked one by one.

    Raises:
        UserError: it is not JSON, or a field is missing, wrong or unknown.
    """
    fields = read_json(file)
    if set(fields) == {"model"} and isinstance(fields["model"], dict):
        fields = fields["model"]
    kinds = typing.get_type_hints(Params)
    given = {name: value for name, value in fields.items() if value is not None and name not in WITHOUT_MEANING}
    try:
        for name, value in given.items():
            if name in NOT_READ:
                raise UserError(f"field {name!r} is {shown(value)}: {NOT_READ[name]}.")
            if name not in kinds:
                remedy = "this version reads Llama 1 to 4, so delete the field if it says nothing about the network"
                raise UserError(f"field {shown(name)} is unknown: {remedy}.")
        for name in ("dim", "n_layers", "n_heads"):
            if name not in given:
                raise UserError(f"field {name!r} is missing: add it.")
        for name, record in (("moe_args", MoEArgs), ("vision_args", VisionArgs)):
            if name in given:
                given[name] = _record(record, name, given[name])
        check_types(given, kinds)
        return Params(**given)
    except UserError as error:
        raise UserError(f"{str(file)!r}: {error}") from error


def _record(record: type[Record], name: str, fields: Any) -> Record:
    """An object of JSON as a record, whose fields are checked."""
    kinds = typing.get_type_hints(record)
    if not isinstance(fields, dict) or not set(fields) <= set(kinds):
        raise UserError(f"field {name!r} is {shown(fields)}: give an object with {listed(kinds)}.")
    for own in dataclasses.fields(typing.cast(Any, record)):
        if own.default is dataclasses.MISSING and fields.get(own.name) is None:
            raise UserError(f"field {name!r} is {shown(fields)}, which lacks {own.name!r}: add it.")
    given = {name: _record(Area, name, value) if kinds[name] is Area else value for name, value in fields.items()}
    check_types(given, kinds)
    return record(**given)


# ------------------------------------------------------------------------------------------------ what is unsaid

LLAMA2_VOCABULARY = 32_000
LLAMA2_THETA = 10_000.0
"""The base of Llama 1 and 2, whose `params.json` has none; code and tables of Meta have no other."""

SCALED: Json = {"low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
"""What `use_scaled_rope` means in Meta's code, but for the factors."""

HIGH_FACTOR, HIGH_FACTOR_OF_LLAMA4 = 4.0, 1.0

FACTOR, FACTOR_IF_TIED, FACTOR_OF_LLAMA4 = 8.0, 32.0, 16.0
"""Llama 3.1 and 3.3 are stretched 8 times; the published configurations of Llama 3.2 (1B and 3B) say 32 times.

Their `params.json` does not tell them apart, but only these two have a head that is tied to the embedding.
"""

TRAINED_LENGTH = {10_000.0: 4096, 500_000.0: 8192, 1_000_000.0: 16_384}
"""Tokens, by the base: Llama 2, Llama 3, Code Llama. No file says it."""

SCALED_LENGTH = 131_072
LLAMA1_LENGTH, LLAMA1_EPS = 2048, 1e-6

LLAMA3_VOCABULARY, LLAMA4_VOCABULARY = 128_256, 202_048

LLAMA4_SPECIAL, PATCH_TOKEN = 2048, 92
"""Special tokens at the end of Llama 4's vocabulary, and the number among them of <|patch|>, a row of an image."""

ENDS_OF_LLAMA3 = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
"""At which of its tokens Meta's code stops to write, whether the network was tuned for chats or not."""


def rotary_of(params: Params, vocab_size: int, tied: bool) -> Rotary:
    """The rotary embedding.

    Raises:
        UserError: the base is missing.
    """
    theta = params.rope_theta
    if theta is None:
        # Elsewhere the base cannot be known, and with a wrong one a network seems to work, but badly.
        if vocab_size != LLAMA2_VOCABULARY or params.use_scaled_rope or params.is_llama4:
            raise UserError(
                f"field 'rope_theta' is missing, which only Llama 1 and 2 with their {LLAMA2_VOCABULARY} tokens may do "
                f"without, but this network has {vocab_size}: add the base that was used in training, such as 500000 "
                "for Llama 3."
            )
        theta = LLAMA2_THETA
    if not params.use_scaled_rope:
        return Rotary(theta=theta)
    factor, high = (FACTOR_IF_TIED if tied else FACTOR), HIGH_FACTOR
    if params.is_llama4:
        factor, high = FACTOR_OF_LLAMA4, HIGH_FACTOR_OF_LLAMA4
    return Llama3Rotary(
        theta=theta, factor=params.rope_scaling_factor or factor, high_freq_factor=params.rope_high_freq_factor or high,
        **SCALED,
    )  # fmt: skip


def trained_length(params: Params, rotary: Rotary) -> int:
    """Tokens of the longest text that the network was trained on."""
    if params.max_seq_len is not None:
        return params.max_seq_len
    if params.use_scaled_rope or params.nope_layer_interval is not None:
        return SCALED_LENGTH
    if rotary.theta == LLAMA2_THETA and params.norm_eps == LLAMA1_EPS:
        return LLAMA1_LENGTH
    return TRAINED_LENGTH.get(rotary.theta, TRAINED_LENGTH[LLAMA2_THETA])


def special_tokens(params: Params, tokenizer: Path, vocab_size: int) -> Json:
    """The tokens that begin and end texts; they follow from the kind of tokenizer."""
    if vocab_size == LLAMA4_VOCABULARY or params.vision_args is not None:
        first = vocab_size - LLAMA4_SPECIAL
        return {"bos_token_id": first, "eos_token_ids": (first + 1, first + 7, first + 8)}
    first = vocab_size - len(LLAMA3_SPECIAL)
    if vocab_size == LLAMA3_VOCABULARY or (tokenizer.is_file() and is_tiktoken(tokenizer) and first >= 0):
        ends = tuple(first + LLAMA3_SPECIAL.index(name) for name in ENDS_OF_LLAMA3)
        return {"bos_token_id": first, "eos_token_ids": ends}
    ids = {"bos_token_id": 1, "eos_token_ids": (2,)}
    return ids if vocab_size > 2 else {}
