"""A Llama-family network, with Hugging Face's parameter names.

The layers know no objective and no mode: they take rows, and views with the masks of a pass. `prepare` makes the
views, `hidden` runs the layers, `logits` projects those rows whose logits are needed; `forward` is the three of them
for a text in the network's default mode.

Shape suffixes: B batch, L text length, R rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from anyorder.attention import NO_CORRECTIONS, AttentionMask, Corrections, Request, compile_mask
from anyorder.errors import UserError
from anyorder.model import call
from anyorder.model.block import Block
from anyorder.model.cache import Cache
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import ExpertWeights, Router
from anyorder.model.linear import Linear
from anyorder.model.norm import RMSNorm
from anyorder.model.packages import CompiledLayers, can_be_packages
from anyorder.model.query_rows import QueryRows
from anyorder.model.rope import Rotary
from anyorder.model.self_attention import SelfAttention
from anyorder.model.view import View
from anyorder.model.vision import Projector, VisionModel
from anyorder.utils.annotations import SIMPLE
from anyorder.utils.model_arguments import MODEL, refuse_method_of_transformers
from anyorder.visibility import Labels, Visibility

Views = dict[LayerKind | Literal["last"], View]
"""By kind of layer; "last" is that of the last layer where `prepare` was given `queries`."""


class CallOutput(NamedTuple):
    """Mean loss in nats per predicted token (None without labels) and logits `[batch, length, vocabulary]`."""

    loss: Tensor | None
    logits: Tensor


class Decoder(nn.Module):
    """Embedding, layers and final norm; the part that Hugging Face calls `model`.

    Args:
        config: the shape.
        block: the class of the layers, `Block` or a subclass.

    Attributes:
        kv_heads: key-value heads that its caches hold.
    """

    def __init__(self, config: ModelConfig, block: type[Block] = Block) -> None:
        super().__init__()
        self.kv_heads = config.num_key_value_heads
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(block(config, kind) for kind in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """The network.

    Attributes:
        config: its shape.
        backend: the attention backend, "auto" or a name in `anyorder.attention.BACKENDS`.
        query_rows: embeddings of query rows, where the network was trained for any order; otherwise None.
        vision_model, multi_modal_projector: make rows of images, where the network has vision; otherwise None.
        image_rows_NE: the rows that ids from `vocab_size` on stand for, see `with_images`; otherwise None.
        compiled_layers: what passes without gradients take in place of layers, see `with_compiled_layers`; otherwise
            None.
    """

    image_rows_NE: Tensor | None = None
    compiled_layers: CompiledLayers | None = None

    def __init__(self, config: ModelConfig, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.query_rows = QueryRows(config.hidden_size) if config.has_query_rows else None
        self.add_vision(config)
        self.reset_parameters()
        self.tie_weights()

    def add_vision(self, config: ModelConfig) -> None:
        """Build the modules that make rows of images, if the configuration has any."""
        self.vision_model = None if config.vision is None else VisionModel(config.vision)
        self.multi_modal_projector = None if config.vision is None else Projector(config.vision, config.hidden_size)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            refuse_method_of_transformers(name)
            raise

    def reset_parameters(self) -> None:
        """Draw new weights, as Hugging Face's Llama does: normal, biases zero, norms one."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, VisionModel):
                module.reset_parameters()
            if isinstance(module, ExpertWeights | Router):
                for name, weight in module.named_parameters(recurse=False):
                    std = 0.0 if name == "expert_bias" else self.config.initializer_range
                    nn.init.normal_(weight, std=std)

    def tie_weights(self) -> None:
        """Let the head share the embedding's matrix where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.model.embed_tokens.weight.dtype

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """Make an empty cache for `batch` samples of at most `capacity` keys each."""
        config = self.config
        return Cache.empty(
            config.num_hidden_layers, batch, capacity, self.model.kv_heads, config.head_dim,
            dtype=self.dtype, device=self.device,
        )  # fmt: skip

    def prepare(
        self,
        visibility: Visibility,
        labels: Labels,
        *,
        n_keys: int | None = None,
        valid: Tensor | None = None,
        cache: Cache | None = None,
        slots: Tensor | None = None,
        corrections: Corrections = NO_CORRECTIONS,
        rotary_positions: Tensor | None = None,
        extent: int | None = None,
        backend: str | None = None,
        queries: Tensor | None = None,
    ) -> Views:
        """Make the view of each kind of layer for rows with these labels.

        With a cache, the rows' keys get their slots here, so each `prepare` is followed by one `hidden` with the same
        cache.

        Args:
            visibility: who sees whom.
            labels: of the rows, each `[batch, rows]`; "position" is the true position of each, which
                rotary embeddings use and which never counts padding.
            n_keys: the first `n_keys` rows are keys and values, too; all unless given.
            valid: rows that are not padding, boolean `[batch, rows]`; all unless given.
            cache: where new keys are added, and all keys are read from.
            slots: slots to overwrite, `[batch, n_keys]`; appended unless given.
            corrections: what changes the attention scores.
            rotary_positions: where rotary embeddings place the rows, if not at their label: also between whole
                positions, `[batch, rows]`.
            extent: number of cache slots to read, those in use unless given. If given, no decision here depends
                on data, so that the whole pass can be compiled.
            backend: the attention backend of this pass; the network's own unless given.
            queries: indices of the rows that `hidden` returns, `[batch, queries]`; all unless given. In the last layer,
                the others are keys and values alone.

        Raises:
            UserError: a label is missing, the cache is full, or the backend cannot do this.
        """
        if "position" not in labels:
            raise UserError(
                f"the rows carry the labels {sorted(labels)}: add 'position', the true position of each row."
            )
        visibility.require_labels(labels, labels)  # before the cache is changed
        n_keys = labels["position"].shape[1] if n_keys is None else n_keys
        key: Labels = {name: label[:, :n_keys] for name, label in labels.items()}
        present = None if valid is None else valid[:, :n_keys]
        backend = "traced" if extent is not None else backend or self.backend
        length_B = _text_lengths(labels["position"], valid)
        if cache is not None and extent is None:
            self._refuse_beyond_cacheable(length_B)
        if cache is not None:
            slots = cache.put(key, present, slots)
            extent = cache.extent if extent is None else extent
            key = {name: label[:, :extent] for name, label in cache.labels.items()}
            present = cache.present[:, :extent]
        place_BR = labels["position"] if rotary_positions is None else rotary_positions
        rotations: dict[Rotary, tuple[Tensor, Tensor]] = {}
        masks: dict[Visibility | None, AttentionMask] = {}
        block_BR = self._blocks(labels)
        views: Views = {}
        for kind in self.config.kinds:
            rotary = self.config.rotary_of(kind)
            if rotary is not None and rotary not in rotations:
                rotations[rotary] = rotary.cos_sin(place_BR, self.config.head_dim, self.dtype, length_B)
            narrowed = visibility if kind.narrowing is None else visibility & kind.narrowing
            request = Request(narrowed, labels, key, present, valid, *corrections)
            if kind.narrowing not in masks:
                masks[kind.narrowing] = compile_mask(request, backend, self.dtype)
            scale = kind.query_scale
            views[kind] = View(
                n_keys=n_keys,
                mask=masks[kind.narrowing],
                cos_sin=None if rotary is None else rotations[rotary],
                query_scale=None if scale is None else scale.factor(labels["position"], self.dtype),
                valid=valid if kind.experts else None,
                block=block_BR if kind.experts else None,
                slots=slots,
                extent=extent or 0,
            )
            if queries is not None and kind == self.config.layers[-1]:
                query = {name: label.gather(1, queries) for name, label in labels.items()}
                valid_BQ = None if valid is None else valid.gather(1, queries)
                request = dataclasses.replace(request, query=query, valid=valid_BQ)
                views["last"] = dataclasses.replace(
                    views[kind], mask=compile_mask(request, backend, self.dtype), queries=queries,
                    valid=valid_BQ if kind.experts else None,
                    block=block_BR.gather(1, queries) if kind.experts and block_BR is not None else None,
                )  # fmt: skip
        return views

    def _blocks(self, labels: Labels) -> Tensor | None:
        """A number for the block of each row, `[batch, rows]`, where experts are chosen by the block."""
        if self.config.experts is None or not self.config.experts.block_length:
            return None
        block_BR = labels["position"] // self.config.experts.block_length
        if "noised" in labels:  # two copies of a text, of which neither knows what the other chooses
            block_BR = 2 * block_BR + labels["noised"]
        sample_B1 = torch.arange(len(block_BR), device=block_BR.device).unsqueeze(1)
        return block_BR * len(block_BR) + sample_B1

    def _refuse_beyond_cacheable(self, length_B: Tensor) -> None:
        limit = self.config.cacheable
        if limit is not None and length_B.numel() and int(length_B.max()) > limit:
            raise UserError(
                f"the text has {int(length_B.max())} tokens and dynamic rotary embeddings turn all keys anew beyond "
                f"{limit}: read it without a cache (use_cache=False)."
            )

    def image_rows(self, pixels_TCXX: Tensor) -> Tensor:
        """Rows `[tiles, rows of a tile, hidden]` of the tiles of images `[tiles, channels, side, side]`.

        Raises:
            UserError: the network has no vision.
        """
        if self.vision_model is None or self.multi_modal_projector is None:
            raise UserError("this network has no vision, so it reads no image: leave out the images, or load another.")
        seen = self.vision_model(pixels_TCXX.to(self.device, self.dtype))
        rows_TRE: Tensor = self.multi_modal_projector(seen)
        return rows_TRE

    def with_images(self, image_rows_NE: Tensor) -> Llama:
        """The same network, without a copy of weights, whose ids from `vocab_size` on stand for these rows."""
        other = copy.copy(self)
        other.image_rows_NE = image_rows_NE
        return other

    def with_compiled_layers(self, threads: int, *, making: bool) -> Llama:
        """The same network, without a copy of weights, whose passes take packages of layers where there are any.

        Args:
            threads: that their loops use.
            making: whether those that are not on disk are made.
        """
        layers = cast(list[Block], list(self.model.layers))
        if not can_be_packages([*layers, self.lm_head]):
            return self
        other = copy.copy(self)
        other.compiled_layers = CompiledLayers(self.config, layers, self.lm_head, threads, making=making)
        return other

    def embed(self, input_ids_BR: Tensor) -> Tensor:
        """Embeddings of tokens, and rows of images where ids are beyond the vocabulary, `[batch, rows, hidden]`.

        Compiled code embeds tokens alone: it reads what was written, which is never an image.

        Raises:
            UserError: an id stands for no token and no row of an image.
        """
        if self.vision_model is None or torch.compiler.is_compiling():
            return self.model.embed_tokens(input_ids_BR)
        beyond_BR = input_ids_BR - self.config.vocab_size
        rows_NE = self.model.embed_tokens.weight[:0] if self.image_rows_NE is None else self.image_rows_NE
        if beyond_BR.numel() and int(beyond_BR.max()) >= len(rows_NE):
            remedy = f"give ids from 0 to {self.config.vocab_size - 1}, from the tokenizer of this network"
            raise UserError(f"there is the token id {int(input_ids_BR.max())}: {remedy}.")
        if not len(rows_NE):
            return self.model.embed_tokens(input_ids_BR)
        token_BRE = self.model.embed_tokens(input_ids_BR.masked_fill(beyond_BR >= 0, 0))
        return torch.where((beyond_BR >= 0).unsqueeze(-1), rows_NE[beyond_BR.clamp(min=0)], token_BRE)

    def hidden(self, input_ids_BR: Tensor, views: Views, cache: Cache | None = None) -> Tensor:
        """Rows after the last layer and the final norm, `[batch, rows, hidden]`; of `queries` where those are given."""
        return self.read(self.embed(input_ids_BR), views, cache)

    def read(self, rows_BRE: Tensor, views: Views, cache: Cache | None = None) -> Tensor:
        """Run the layers and the final norm over rows `[batch, rows, hidden]`, such as embeddings; see `hidden`."""
        compiled = {} if self.compiled_layers is None else self.compiled_layers.of_pass(rows_BRE, views)
        for index, (layer, kind) in enumerate(zip(self.model.layers, self.config.layers, strict=True)):
            last = index == len(self.model.layers) - 1 and "last" in views
            # An attention from outside may not know how to leave rows out.
            leaves_out = last and type(layer.self_attn) is SelfAttention
            kv = None if cache is None else cache.layers[index]
            if kind in compiled and not leaves_out:
                rows_BRE = compiled[kind](index, rows_BRE, kv)
            else:
                rows_BRE = layer(rows_BRE, views["last"] if leaves_out else views[kind], kv)
            if last and not leaves_out:
                rows_BRE = views["last"].queries_of(rows_BRE)
        normed_BRE: Tensor = self.model.norm(rows_BRE)
        return normed_BRE

    def two_streams(
        self, input_ids_BC: Tensor, query_position_BK: Tensor, views: Views, cache: Cache | None = None
    ) -> Tensor:  # fmt: skip
        """Run the network over tokens `[batch, content rows]`, then query rows at positions `[batch, query rows]`.

        Without query rows this equals `hidden`, and the weights that make query rows have a gradient of zeros.
        """
        rows_BRE = self.with_query_rows(self.embed(input_ids_BC), query_position_BK)
        return self.read(rows_BRE, views, cache)

    def with_query_rows(self, content_BCE: Tensor, query_position_BK: Tensor) -> Tensor:
        """Append query rows to content rows `[batch, content rows, hidden]`: `[batch, rows, hidden]`."""
        assert self.query_rows is not None or query_position_BK.shape[1] == 0, "a network without them was refused"
        if self.query_rows is None:
            return content_BCE
        # Also where there are none: other processes may have some in this step, and wait for a gradient from all.
        return torch.cat((content_BCE, self.query_rows(query_position_BK).to(content_BCE.dtype)), 1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the layers, with `torch.compile`'s arguments: one graph, as `prepare` made all decisions before.

        `torch.compile(model)` would compile `prepare` too, in pieces, as what it decides depends on data.
        """
        self.read = torch.compile(self.read, *args, **kwargs)  # type: ignore[method-assign]

    def logits(self, hidden: Tensor) -> Tensor:
        """Project rows `[..., hidden]` to scores of every token, `[..., vocabulary]`."""
        compiled = None if self.compiled_layers is None else self.compiled_layers.scores(hidden)
        scores: Tensor = self.lm_head(hidden) if compiled is None else compiled
        return scores

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CallOutput:
        """Read a text in the network's default mode, called as in transformers.

        | default mode | a row sees | `logits[:, i]` predict |
        |---|---|---|
        | left to right | itself and what comes before | token i + 1 |
        | masked diffusion | everything | token i |
        | block diffusion | its own block and those before, blocks counted from the first token | token i |
        | any order | what comes before (two streams, one token a group) | token i |

        A diffusion network whose own logits are shifted (Dream) is read accordingly: `logits[:, i]` are those of its
        row i - 1, and of row 0 for the first token.

        Args:
            input_ids: tokens `[batch, length]`, the mask token where a diffusion network shall predict one.
            attention_mask: 1 for tokens and 0 for padding, on either side and between, `[batch, length]`.
            labels: tokens to be predicted at their own places, `[batch, length]`, -100 where none is. Padding is
                never predicted.
            num_items_in_batch: what the summed loss is divided by, when gradients are accumulated; the
                number of predicted tokens unless given.

        Raises:
            UserError: `input_ids` are no tokens, the shape of the mask or the labels is another, the mask has values
                other than 0 and 1, or the default mode predicts no token.
        """
        call.check_tokens(input_ids)
        for name, given in (("attention_mask", attention_mask), ("labels", labels)):
            if given is not None and given.shape != input_ids.shape:
                raise UserError(f"{name} has the shape {list(given.shape)}: give {list(input_ids.shape)}.")
        mode = self.config.mode(self.config.default_mode)
        valid_BL = None if attention_mask is None else call.valid_of(attention_mask)
        logits_BLV = self.logits(call.read_as(self, mode, input_ids, valid_BL))
        if labels is None:
            return CallOutput(None, logits_BLV)
        target_BL = call.targets_of(mode, labels, torch.ones_like(labels).bool() if valid_BL is None else valid_BL)
        return CallOutput(call.mean_loss(logits_BLV, target_BL, num_items_in_batch), logits_BLV)


def _text_lengths(position_BR: Tensor, valid: Tensor | None) -> Tensor:
    """Tokens of each text up to its last valid row, int64 `[batch]`."""
    if position_BR.shape[1] == 0:
        return position_BR.new_zeros(len(position_BR))
    counted_BR = position_BR if valid is None else position_BR.masked_fill(~valid, -1)
    return counted_BR.amax(1) + 1


SIMPLE[Llama] = MODEL
