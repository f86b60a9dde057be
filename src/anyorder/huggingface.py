"""The transformers face of the network: `from_pretrained`, `generate`, `Trainer`, PEFT, evaluation harnesses.

The network is the same `Llama`, module by module, so a face can be put on one that is loaded already. No other
network or configuration in this package derives from transformers' classes, so what changes between their versions is
contained here.
Importing this module makes `AutoConfig` and `AutoModelForCausalLM` know both classes.

Shape suffixes: B batch, R rows, L tokens so far, E hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import Cache as TransformersCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from anyorder.attention import TRANSFORMERS_NAMES
from anyorder.checkpoints.config_json import config_from_json, config_to_json, our_config_to_json
from anyorder.errors import UserError
from anyorder.model.block import Block
from anyorder.model.cache import Cache, LayerCache
from anyorder.model.config import ModelConfig
from anyorder.model.int8 import Int8Linear
from anyorder.model.linear import Linear
from anyorder.model.llama import Decoder, Llama, Views
from anyorder.model.query_rows import QueryRows
from anyorder.model.rope import Rotary
from anyorder.model.view import View
from anyorder.visibility import documents, not_after
from anyorder.ways import refuse_unless_causal

FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))

SPARE = 64
"""Slots that a cache of transformers' generation has at least for what comes next."""

OF_THE_FILE = ("dtype", "transformers_version", "quantization_config")
"""What transformers notes in a config.json beside the network."""


class AnyOrderConfig(PreTrainedConfig):
    """The configuration of a network, as transformers wants it: a `ModelConfig`, and what transformers adds.

    Every field and property of the `ModelConfig` can be read here, and every field be set, which checks it. Built from
    `backbone`, from the fields of a `ModelConfig`, or from those of a `config.json`.

    Attributes:
        backbone: the configuration of the network.
        use_cache: whether passes without gradients return keys and values unless told otherwise.

    Raises:
        UserError: a field has a value that no network can have.
    """

    model_type = "anyorder"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' own are lists)
    # transformers 5.16 would build one without arguments, to see what differs from it.
    has_no_defaults_at_init = True

    backbone: ModelConfig = None  # type: ignore[assignment]
    use_cache: bool = True

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    def __post_init__(self, **fields: Any) -> None:
        given = {name: fields.pop(name) for name in FIELDS if name in fields}
        if self.backbone is not None:
            self.backbone = self.backbone.replace(**given)
        elif isinstance(given.get("rotary"), Rotary):
            self.backbone = ModelConfig(**given)
        else:
            self.backbone = config_from_json({"model_type": self.model_type} | given)
        super().__post_init__(**fields)

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not found otherwise.
        backbone = self.__dict__.get("backbone")
        if backbone is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(backbone, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIELDS:
            self.backbone = self.backbone.replace(**{name: value})
        else:
            super().__setattr__(name, value)

    @property
    def eos_token_id(self) -> int | list[int] | None:
        """The tokens that end a text: one, several, or none."""
        eos = self.backbone.eos_token_ids
        return None if not eos else eos[0] if len(eos) == 1 else list(eos)

    @eos_token_id.setter
    def eos_token_id(self, eos: int | Sequence[int] | None) -> None:
        self.eos_token_ids = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a `config.json` says, of any architecture that this package reads, in fields of this class.

        Raises:
            UserError: it describes a network that is not supported.
        """
        fields, unused = super().get_config_dict(*args, **kwargs)
        if fields.get("model_type") != cls.model_type:
            dtype = fields.get("dtype", fields.get("torch_dtype"))
            fields = {"model_type": cls.model_type, "backbone": config_from_json(fields), "dtype": dtype}
        return fields, unused

    def to_dict(self) -> dict[str, Any]:
        """All fields, those of the backbone too, as they may stand in JSON."""
        fields: dict[str, Any] = super().to_dict()
        del fields["backbone"]
        backbone = our_config_to_json(self.backbone)
        del backbone["architectures"]
        return {
            **fields,
            **backbone,
            "eos_token_id": self.eos_token_id,
        }

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Writes what `anyorder.save` writes: the nearest architecture of transformers, or else our own."""
        fields = config_to_json(self.backbone)
        noted = super().to_diff_dict()
        fields |= {name: noted[name] for name in OF_THE_FILE if name in noted}
        Path(json_file_path).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


class PastKeyValues(TransformersCache):
    """Our cache under transformers' protocol, in which a cache has a length: columns of a batch, padding included.

    Attributes:
        slots: the cache; of each key it knows the column.
        columns: how many have been read.
    """

    def __init__(self, slots: Cache) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.columns = 0

    is_compileable = False
    is_croppable = True

    def __len__(self) -> int:
        return len(self.slots.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.slots.batch} texts, {self.columns} columns)"

    def make_room(self, columns: int) -> None:
        """Grows where this many more columns might not fit, by at least as much as there is."""
        needed, capacity = self.slots.extent + columns, self.slots.capacity
        if needed > capacity:
            everyone = torch.arange(self.slots.batch, device=self.slots.present.device)
            self.slots = self.slots.gather(everyone, capacity=max(needed + SPARE, 2 * capacity))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that have been read."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """That it has none, in transformers' number for that."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns that a mask for this many more would have, and the first of them."""
        return self.columns + query_length, 0

    def reset(self) -> None:
        """Forgets everything."""
        self.crop(-self.columns)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last columns; their number is negative.

        Raises:
            UserError: it is positive, which meant a length up to transformers 5.17.
        """
        if tokens_to_remove > 0:
            raise UserError(f"crop is {tokens_to_remove}: give the number of tokens to remove, as a negative number.")
        self.columns += tokens_to_remove
        if self.slots.labels:
            self.slots.drop(self.slots.labels["column"] >= self.columns)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Each text goes on from the keys of the one named, `[batch]`."""
        self.slots = self.slots.gather(beam_idx.to(self.slots.present.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the texts named, `[new batch]`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Has each text so many times, next to each other."""
        self.reorder_cache(torch.arange(self.slots.batch).repeat_interleave(repeats))


class AnyOrderForCausalLM(Llama, PreTrainedModel, GenerationMixin):
    """The network as transformers' tools know networks that write from left to right.

    Takes part in everything that a `Llama` does here as well, such as `anyorder.generate`.
    """

    config: AnyOrderConfig  # type: ignore[assignment]
    config_class = AnyOrderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The loss is divided by the number of tokens in all batches between two steps, not in each.
    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (as transformers has it)
    _no_split_modules = [Block.__name__]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: AnyOrderConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = Decoder(config.backbone)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.query_rows = QueryRows(config.hidden_size) if config.has_query_rows else None
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def of(cls, network: Llama) -> Self:
        """The same network with this face: its modules and weights are shared, nothing is copied."""
        if isinstance(network, cls):
            return network
        names = {ours: theirs for theirs, ours in TRANSFORMERS_NAMES.items()}
        attention = names.get(TRANSFORMERS_NAMES.get(network.backend, network.backend))  # None stands for "auto"
        config = AnyOrderConfig(backbone=network.config, dtype=network.dtype, attn_implementation=attention)
        with torch.device("meta"):
            face = cls(config)
        face.model, face.lm_head, face.query_rows = network.model, network.lm_head, network.query_rows
        return face.train(network.training)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers' method, for every architecture that this package reads."""
        loaded = super().from_pretrained(*args, **kwargs)
        face = loaded[0] if isinstance(loaded, tuple) else loaded
        # Where config.json and generation_config.json disagree about it, `generate` follows the latter.
        if face.generation_config.eos_token_id is not None:
            face.config.eos_token_id = face.generation_config.eos_token_id
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers' method; what `anyorder.save` writes, and a `generation_config.json`.

        Raises:
            UserError: the weights have been rounded to integers.
        """
        if any(isinstance(module, Int8Linear) for module in self.modules()):
            raise UserError(
                "the network's weights are int8, rounded for writing alone: save it as it was loaded before."
            )
        super().save_pretrained(*args, **kwargs)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As transformers' method; a head that has been rounded to integers stays as it is."""
        if not isinstance(self.lm_head, Int8Linear):
            PreTrainedModel.tie_weights(self, *args, **kwargs)

    @property
    def backend(self) -> str:  # type: ignore[override]
        """The attention backend, by transformers' name; `set_attn_implementation` sets it."""
        return str(self.config._attn_implementation)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' method, from left to right alone.

        Raises:
            UserError: the network does not write from left to right.
        """
        refuse_unless_causal(self.config.ways, self.config.default_way)
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # Its cache has no slots.
        return False

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int,
        max_cache_length: int,
    ) -> None:  # fmt: skip
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        if not self._can_cache(max_cache_length):
            generation_config.use_cache = False  # of this call: it is a copy
        elif model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            texts = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            model_kwargs["past_key_values"] = PastKeyValues(self.new_cache(texts, 0))

    def _can_cache(self, tokens: int) -> bool:
        """Whether the rotary embedding lets so many tokens be cached."""
        limit = self.config.rotary.cacheable
        return limit is None or tokens <= limit

    # `generate` looks at the names of its arguments.
    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As transformers' method, without what its own loop alone needs, such as a tokenizer."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        return {name: value for name, value in inputs.items() if name in ARGUMENTS}

    def run_layer(self, layer: nn.Module, rows_BRE: Tensor, view: View, kv: LayerCache | None) -> Tensor:
        """One layer; with gradient checkpointing it is computed again backwards instead of kept."""
        if self.gradient_checkpointing and self.training and kv is None:
            again: Tensor = self._gradient_checkpointing_func(layer.__call__, rows_BRE, view, kv)
            return again
        return super().run_layer(layer, rows_BRE, view, kv)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: TransformersCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Left to right, as `LlamaForCausalLM`.

        Args:
            input_ids: tokens `[batch, rows]`.
            attention_mask: 1 for tokens and 0 for padding on either side, `[batch, rows so far]`.
            position_ids: true positions `[batch, rows]`, counted from the mask unless given. Without a mask and a
                cache, texts begin where they do not rise by 1, and do not see each other.
            past_key_values: what an earlier pass returned.
            inputs_embeds: rows `[batch, rows, hidden]` instead of tokens.
            labels: tokens to be predicted `[batch, rows]`, -100 where none is; `logits[:, i]` is compared with
                `labels[:, i + 1]`.
            use_cache: whether to return `past_key_values`; unless given, `config.use_cache` says so where no gradients
                are recorded.
            output_attentions: cannot be had.
            output_hidden_states: whether to return the rows that each layer reads and those after the final norm.
            return_dict: False for a tuple.
            logits_to_keep: how many of the last rows to return logits for, all if 0, or which rows `[n]`.
            num_items_in_batch: what the summed loss is divided by; the number of predicted tokens unless given.

        Raises:
            UserError: the network does not write from left to right, or the arguments do not fit each other.
        """
        refuse_unless_causal(self.config.ways, self.config.default_way)
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise UserError("output_attentions is True, but attention weights are not kept: leave it out.")
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("both or neither of input_ids and inputs_embeds are given: give one of them.")
        rows_BRE = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        shape = (rows_BRE.shape[0], rows_BRE.shape[1])
        packed = past_key_values is None and attention_mask is None and _begins_anew(position_ids)
        if use_cache is None:
            wanted = self.config.use_cache and not torch.is_grad_enabled()
            use_cache = wanted and not packed and self._can_cache(shape[1])
        if packed and use_cache:
            raise UserError("use_cache is True, but position_ids begins anew within a row: give use_cache=False.")
        past = self._past(past_key_values, use_cache, shape)
        views = self._views(shape, attention_mask, position_ids, past, packed)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        with _inputs_of(self.model.layers if output_hidden_states else ()) as states:
            hidden_BRE = self.read(rows_BRE, views, None if past is None else past.slots)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BRV = self.logits(hidden_BRE[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits_BRV,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BRV,
            past_key_values=past,
            hidden_states=(*states, hidden_BRE) if output_hidden_states else None,
        )
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return output.to_tuple() if as_tuple else output

    def _past(self, given: TransformersCache | None, use_cache: bool, shape: tuple[int, int]) -> PastKeyValues | None:
        """The cache of a pass over `[batch, rows]`, with room for it; None without one."""
        batch, rows = shape
        if given is None:
            if not use_cache:
                return None
            given = PastKeyValues(self.new_cache(batch, 0))
        if not isinstance(given, PastKeyValues):
            raise UserError(
                f"past_key_values is a {type(given).__name__}: leave it out, or give what an earlier pass returned."
            )
        if given.slots.batch != batch:
            raise UserError(f"past_key_values has {given.slots.batch} texts, but there are {batch}: give as many.")
        given.make_room(rows)
        return given

    def _views(
        self, shape: tuple[int, int], mask: Tensor | None, position_ids: Tensor | None, past: PastKeyValues | None,
        packed: bool,
    ) -> Views:  # fmt: skip
        """What `prepare` makes of transformers' arguments.

        The order of columns says who comes after whom, as in transformers; positions only turn queries and keys.
        """
        before = 0 if past is None else past.columns
        batch, rows = shape
        column_BR = torch.arange(before, before + rows, device=self.device).expand(batch, -1)
        position_BR, valid_BR = column_BR, None
        if mask is not None:
            if mask.shape != (batch, before + rows):
                remedy = f"give [batch, tokens so far], {[batch, before + rows]}"
                raise UserError(f"attention_mask has the shape {list(mask.shape)}: {remedy}.")
            valid_BR = mask[:, before:].bool()
            position_BR = (mask.long().cumsum(1) - 1).clamp(min=0)[:, before:]
        elif past is not None and before:
            position_BR = column_BR - before + past.slots.present.sum(1, keepdim=True)
        if position_ids is not None:
            position_BR = position_ids.expand(batch, -1)
        labels = {"position": position_BR, "column": column_BR}
        visibility = not_after("column")
        if packed:
            labels["document"] = (position_BR.diff(prepend=position_BR[:, :1] - 1) != 1).cumsum(1)
            visibility &= documents()
        if past is None:
            return self.prepare(visibility, labels, valid=valid_BR)
        past.columns += rows
        return self.prepare(visibility, labels, valid=valid_BR, cache=past.slots)


def _begins_anew(position_ids: Tensor | None) -> bool:
    """Whether several texts are packed into a row, so that positions do not always rise by 1."""
    return position_ids is not None and bool((position_ids.diff() != 1).any())


@contextlib.contextmanager
def _inputs_of(layers: Sequence[nn.Module] | nn.ModuleList) -> Iterator[list[Tensor]]:
    """A list that fills with the rows that each layer reads."""
    states: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, given: states.append(given[0])) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


ARGUMENTS = frozenset(inspect.signature(AnyOrderForCausalLM.forward).parameters)
"""Of the forward pass."""

AutoConfig.register(AnyOrderConfig.model_type, AnyOrderConfig, exist_ok=True)
AutoModelForCausalLM.register(AnyOrderConfig, AnyOrderForCausalLM, exist_ok=True)
