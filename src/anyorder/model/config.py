"""The shape of a network: a frozen record, checked when it is built."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Annotated, Literal

from anyorder.errors import UserError
from anyorder.model.experts import Experts
from anyorder.model.modes import LEFT_TO_RIGHT, Mode, check_modes, find_mode, mode_named
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import Rotary
from anyorder.model.vision import VisionConfig
from anyorder.utils.annotations import AtMost, check_fields, requirement
from anyorder.visibility import Visibility, chunks, sliding_window

QKNorm = Literal["none", "learned", "learned-full-width", "weightless"]

HEAD_LAYOUTS = ("MHA", "GQA", "MQA")

Whole = Annotated[int, AtMost(2**31 - 1)]
Real = Annotated[float, AtMost(1e15)]

MOST_LAYERS = 4096
"""Four times as many as the deepest networks of the literature."""

CALLED = "configuration field {!r}"
"""How errors name a field."""

MOST_ROW_IDS = 2**31
"""Tokens and rows of images together."""

LARGEST_MATRIX = 2**45
"""Weights of one matrix; sizes whose product is larger are mistakes, and overflow where PyTorch counts bytes."""


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What a layer declares of itself; layers of one kind share a `View` in each forward pass.

    Attributes:
        rotary: whether queries and keys are rotated (False: NoPE), or a rotary embedding of its own.
        window: the layer sees only this many latest positions, its own included.
        chunk: the layer sees only its own chunk of this many positions.
        query_scale: how queries grow with their position; None: not at all.
        experts: the layer's feed-forward network is a mixture, the `experts` of the configuration.
    """

    rotary: bool | Rotary = True
    window: Whole | None = None
    chunk: Whole | None = None
    query_scale: QueryScale | None = None
    experts: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "layer field {!r}")
        for name, size in (("window", self.window), ("chunk", self.chunk)):
            if size is not None and size < 1:
                raise UserError(f"layer field {name!r} is {size}: give a whole number above 0, or None.")
        if self.window is not None and self.chunk is not None:
            raise UserError(f"layer field 'chunk' is {self.chunk} beside the window {self.window}: give one of them.")

    @property
    def narrowing(self) -> Visibility | None:
        """What the layer hides beyond the visibility of the pass."""
        if self.window is not None:
            return sliding_window(self.window)
        return None if self.chunk is None else chunks(self.chunk)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-family network; names follow Hugging Face's Llama configuration.

    Attributes:
        vocab_size: number of tokens that have an embedding.
        hidden_size: width of a row.
        intermediate_size: inner width of the feed-forward network.
        num_attention_heads: query heads of each layer.
        num_key_value_heads: heads of keys and values; query heads share them in contiguous groups
            (all: MHA, one: MQA, between: GQA).
        head_dim: width of one head; `hidden_size // num_attention_heads` unless given.
        max_position_embeddings: trained length in tokens.
        rotary: how positions turn queries and keys.
        layers: the kind of each layer; rotary layers that see all unless given, with experts if there are any.
        experts: the mixture of experts of the layers that have one; None: there is none.
        attention: name in `ATTENTIONS` of an attention module of one's own; None: `SelfAttention`. One of
            `HEAD_LAYOUTS` becomes None, since the numbers of heads say the same.
        attention_bias: biases on the query, key and value projections.
        attention_output_bias: bias on the output projection.
        qk_norm: root-mean-square norm of each query and key head: "none", "learned" (Qwen3), "learned-full-width" of
            all heads at once (OLMoE), or "weightless" in layers with rotary (Llama 4).
        mlp_bias: biases in the feed-forward network.
        tie_word_embeddings: the head uses the embedding matrix.
        bos_token_id, eos_token_ids, pad_token_id: special tokens, None or empty where there is none. Padding is never
            embedded, so that its token may lie beyond the vocabulary.
        modes: the modes that the network was trained for.
        default_mode: the name of the mode that is used unless another one is chosen; the first unless given.
        vision: the encoder of images, where the network has one.

    Raises:
        UserError: a field has a value that no network can have.
    """

    vocab_size: Whole
    hidden_size: Whole
    intermediate_size: Whole
    num_hidden_layers: Annotated[int, AtMost(MOST_LAYERS)]
    num_attention_heads: Whole
    rotary: Rotary
    num_key_value_heads: Whole = 0
    head_dim: Whole = 0
    max_position_embeddings: Whole = 2048
    rms_norm_eps: Real = 1e-5
    layers: tuple[LayerKind, ...] = ()
    experts: Experts | None = None
    attention: str | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: QKNorm = "none"
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: Real = 0.02
    bos_token_id: Whole | None = None
    eos_token_ids: tuple[Whole, ...] = ()
    pad_token_id: Whole | None = None
    modes: tuple[Mode, ...] = (LEFT_TO_RIGHT,)
    default_mode: str = ""
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self, CALLED)
        require = requirement(self, CALLED)
        heads = self.num_attention_heads
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            require(name, getattr(self, name) > 0, "give a whole number above 0")
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", heads)
        if self.head_dim == 0:
            remedy = f"give a multiple of num_attention_heads, which is {heads}, or set head_dim"
            require("hidden_size", self.hidden_size % heads == 0, remedy)
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if not self.layers:
            object.__setattr__(self, "layers", (LayerKind(experts=self.experts is not None),) * self.num_hidden_layers)
        divides = self.num_key_value_heads > 0 and heads % self.num_key_value_heads == 0
        require("num_key_value_heads", divides, f"give a divisor of num_attention_heads, which is {heads}")
        if self.attention in HEAD_LAYOUTS:
            fits = self.attention == self.head_layout
            require("attention", fits, f"the {self.num_key_value_heads} key-value heads make it {self.head_layout}")
            object.__setattr__(self, "attention", None)
        even = self.head_dim > 0 and self.head_dim % 2 == 0
        require("head_dim", even, "rotary embeddings turn pairs, so give an even number")
        require("max_position_embeddings", self.max_position_embeddings > 0, "give the trained length in tokens")
        one_each = len(self.layers) == self.num_hidden_layers
        require("layers", one_each, f"give one kind for each of the {self.num_hidden_layers} layers")
        has_experts = any(kind.experts for kind in self.layers)
        remedy = "say of what kind they are, as some layers have them" if has_experts else "give layers that have them"
        require("experts", has_experts == (self.experts is not None), remedy)
        # A layer whose own rotary embedding is the network's is of the same kind as one without.
        same = {kind: dataclasses.replace(kind, rotary=True) for kind in set(self.layers) if kind.rotary == self.rotary}
        object.__setattr__(self, "layers", tuple(same.get(kind, kind) for kind in self.layers))
        self._check_sizes()
        self._check_special_tokens()
        if not self.default_mode and self.modes:
            object.__setattr__(self, "default_mode", self.modes[0].name)
        object.__setattr__(self, "default_mode", mode_named(self.default_mode) or self.default_mode)
        check_modes(self.modes, self.default_mode)
        for mode in self.modes:
            self._check_mask_token(mode)

    def _check_sizes(self) -> None:
        require = requirement(self, CALLED)
        for name in ("rms_norm_eps", "initializer_range"):
            require(name, getattr(self, name) >= 0, "give a number from 0 on")
        rows = {
            "vocab_size": self.vocab_size,
            "intermediate_size": self.intermediate_size,
            "head_dim": self.num_attention_heads * self.head_dim,
            **({} if self.experts is None else {"experts": self.experts.number * 2 * self.experts.width}),
        }
        for name, size in rows.items():
            remedy = f"give smaller sizes, as beside hidden_size {self.hidden_size} it makes matrices of 2**45 weights"
            require(name, size * self.hidden_size < LARGEST_MATRIX, remedy)

    def _check_special_tokens(self) -> None:
        require = requirement(self, CALLED)
        ids = range(self.vocab_size)
        remedy = f"give ids from 0 to {self.vocab_size - 1}"
        require("bos_token_id", self.bos_token_id is None or self.bos_token_id in ids, remedy)
        require("eos_token_ids", all(token_id in ids for token_id in self.eos_token_ids), remedy)
        if self.vision is not None and self.vision.image_token_id not in ids:
            raise UserError(f"vision field 'image_token_id' is {self.vision.image_token_id}: {remedy}.")

    def _check_mask_token(self, mode: Mode) -> None:
        token_id = mode.mask_token_id
        if token_id is None:
            return
        if not 0 <= token_id < self.vocab_size:
            raise UserError(f"mask_token_id is {token_id}: give an id from 0 to {self.vocab_size - 1}.")
        others = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)]
        others += [("eos_token_id", end_token_id) for end_token_id in self.eos_token_ids]
        for name, other in others:
            if other == token_id:
                remedy = "give a token that stands for nothing else"
                raise UserError(f"mask_token_id is {token_id}, which is {name} too: {remedy}.")

    @property
    def head_layout(self) -> str:
        """How query heads share key-value heads: "MHA" (not at all), "GQA" (in groups) or "MQA" (all of them)."""
        if self.num_key_value_heads == self.num_attention_heads:
            return "MHA"
        return "MQA" if self.num_key_value_heads == 1 else "GQA"

    @property
    def context_length(self) -> int:
        """The longest text, in tokens, that the network can read or write.

        Layers with a window or chunks turn no further than these reach.
        """
        wide = [kind for kind in self.kinds if kind.narrowing is None] or self.kinds
        rotaries = [rotary for kind in wide if (rotary := self.rotary_of(kind)) is not None] or [self.rotary]
        return min(rotary.reach(self.max_position_embeddings) for rotary in rotaries)

    @functools.cached_property
    def cacheable(self) -> int | None:
        """Tokens up to which all texts have the same frequencies in every layer, as caches need; None: any number."""
        rotaries = [rotary for kind in self.kinds if (rotary := self.rotary_of(kind)) is not None]
        return min((limit for rotary in rotaries if (limit := rotary.cacheable) is not None), default=None)

    @functools.cached_property
    def kinds(self) -> list[LayerKind]:
        """The different kinds of layer, in the order of the layers."""
        return list(dict.fromkeys(self.layers))

    def rotary_of(self, kind: LayerKind) -> Rotary | None:
        """The rotary embedding of layers of this kind; None where there is none."""
        if isinstance(kind.rotary, bool):
            return self.rotary if kind.rotary else None
        return kind.rotary

    @property
    def has_query_rows(self) -> bool:
        """Whether the network has weights for query rows, as writing in any order needs."""
        return any(mode.kind.query_rows for mode in self.modes)

    @property
    def row_ids(self) -> range:
        """Ids that a row can have: tokens, and behind them rows of images where the network has vision."""
        return range(self.vocab_size if self.vision is None else MOST_ROW_IDS)

    @property
    def mask_token_ids(self) -> tuple[int, ...]:
        """The different mask tokens of its modes."""
        return tuple(dict.fromkeys(mode.mask_token_id for mode in self.modes if mode.mask_token_id is not None))

    def mode(self, name: str) -> Mode:
        """The conventions of a mode that the network was trained for.

        Raises:
            UserError: it was not trained for that.
        """
        return find_mode(self.modes, name)

    def replace(self, **changes: object) -> ModelConfig:
        """A copy with some fields changed, checked again; of new modes the first is the default."""
        if "modes" in changes:
            changes = {"default_mode": ""} | changes
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
