"""The transformers model of networks that write from left to right.

Shape suffixes: B batch, R rows, L tokens so far, E hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as TransformersCache
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from anyorder.errors import UserError
from anyorder.huggingface.dynamic_cache import fill, past_from
from anyorder.huggingface.mixin import AnyOrderMixin, inputs_of, watch_attention
from anyorder.huggingface.past import PastKeyValues, undone_on_error
from anyorder.huggingface.versions import CACHE_NAME, name_cache, read_by_both_names
from anyorder.model import call
from anyorder.model.llama import Views
from anyorder.model.modes import KINDS, refuse_unless_causal
from anyorder.visibility import documents, not_after

logger = logging.getLogger(__name__)


class AnyOrderForCausalLM(AnyOrderMixin, GenerationMixin):
    """The network as transformers' tools know networks that write from left to right.

    Takes part in everything that a `Llama` does here as well, such as `anyorder.generate`.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a network; warn where it would write otherwise if no class were named."""
        loaded = super().from_pretrained(*args, **kwargs)
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).config
        if not KINDS[config.default_mode].causal:
            has = any(mode.kind.causal for mode in config.modes)
            does = "reads and writes it from left to right" if has else "refuses to be called"
            logger.warning(
                "the network writes by %r by default, but %s %s: anyorder.load and anyorder.generate take the default",
                config.default_mode, cls.__name__, does,
            )  # fmt: skip
        return loaded

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers' method does, from left to right alone.

        Raises:
            UserError: the network does not write from left to right, or shall guess with its own first layers.
        """
        refuse_unless_causal(self.config.modes, self.config.default_mode)
        configured = kwargs.get("generation_config") or self.generation_config
        layers = kwargs.get("assistant_early_exit", getattr(configured, "assistant_early_exit", None))
        if layers is not None:
            raise UserError(f"assistant_early_exit is {layers}: give a network of its own as assistant_model.")
        return read_by_both_names(super().generate(*args, **name_cache(kwargs)))  # type: ignore[misc]

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
        elif model_kwargs.get(CACHE_NAME) is None and generation_config.use_cache is not False:
            texts = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            model_kwargs[CACHE_NAME] = PastKeyValues(self.new_cache(texts, 0))

    def _can_cache(self, tokens: int) -> bool:
        """Return whether the rotary embedding lets so many tokens be cached."""
        limit = self.config.cacheable
        return limit is None or tokens <= limit

    # `generate` reads the names of its arguments.
    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Prepare inputs as transformers' method does, without those of its own loop, such as a tokenizer."""
        inputs = super().prepare_inputs_for_generation(*args, **name_cache(kwargs))  # type: ignore[misc]
        inputs = {name: value for name, value in inputs.items() if name in ARGUMENTS}
        if CACHE_NAME in inputs:  # PEFT reads the old name, whatever transformers calls it
            inputs["past_key_values"] = inputs.pop(CACHE_NAME)
        return inputs

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: TransformersCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: TransformersCache | None = None,
        cache_position: Tensor | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predict the next token of each row, as `LlamaForCausalLM` does.

        Args:
            input_ids: tokens `[batch, rows]`.
            attention_mask: 1 for tokens and 0 for padding on either side, `[batch, rows so far]`.
            position_ids: true positions `[batch, rows]`, counted from the mask unless given. Without a mask and a
                cache, texts begin where they do not rise by 1, and do not see each other.
            cache: what an earlier pass returned, or a `DynamicCache`, empty or filled, which is filled further and
                returned.
            inputs_embeds: rows `[batch, rows, hidden]` instead of tokens.
            labels: tokens to be predicted `[batch, rows]`, -100 where none is; `logits[:, i]` is compared with
                `labels[:, i + 1]`.
            use_cache: whether to return a `cache`; unless given, `config.use_cache` says so where no gradients
                are recorded.
            output_attentions: whether to return the weights of each layer, `[batch, heads, rows, rows so far]`. They
                are computed by the eager backend, whatever the network uses otherwise.
            output_hidden_states: whether to return the rows that each layer reads and those after the final norm.
            return_dict: False for a tuple.
            logits_to_keep: how many of the last rows to return logits for, all if 0, or which rows `[n]`.
            num_items_in_batch: what the summed loss is divided by; the number of predicted tokens unless given.
            past_key_values: another name of `cache`.
            cache_position: the columns of these rows `[rows]`, as transformers 4 has it: those after the cache.
            others: arguments of other networks, as PEFT passes them: None or False.

        Raises:
            UserError: the network does not write from left to right, or the arguments do not fit each other.
        """
        refuse_unless_causal(self.config.modes, self.config.default_mode)
        self.refuse_others(others)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("both or neither of input_ids and inputs_embeds are given: give one of them.")
        if input_ids is not None:
            call.check_tokens(input_ids)
        given = name_cache({"cache": cache, "past_key_values": past_key_values}).get(CACHE_NAME)
        rows_BRE = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        shape = (rows_BRE.shape[0], rows_BRE.shape[1])
        if labels is not None and labels.shape != shape:
            raise UserError(f"labels has the shape {list(labels.shape)}: give {list(shape)}.")
        packed = given is None and attention_mask is None and _begins_anew(position_ids)
        if use_cache is None:
            wanted = self.config.use_cache and not torch.is_grad_enabled()
            use_cache = wanted and not packed and self._can_cache(shape[1])
        if packed and use_cache:
            raise UserError("use_cache is True, but position_ids begins anew within a row: give use_cache=False.")
        dynamic = given if isinstance(given, DynamicCache) else None
        if dynamic is not None:
            given = past_from(dynamic, self, shape[0], attention_mask)
        past = self._past(given, use_cache, shape)
        before = 0 if past is None else past.columns
        if cache_position is not None and cache_position.tolist() != list(range(before, before + shape[1])):
            remedy = f"leave it out, or give the columns from {before} to {before + shape[1] - 1}"
            raise UserError(f"cache_position is {cache_position.tolist()}: {remedy}.")
        backend = "eager" if output_attentions else None
        weights: list[Tensor] = []
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        with undone_on_error(past), inputs_of(self.model.layers if output_hidden_states else ()) as states:
            views = self._views(shape, attention_mask, position_ids, past, packed, backend)
            if output_attentions:
                views, weights = watch_attention(views)
            hidden_BRE = self.read(rows_BRE, views, None if past is None else past.slots)
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits_BRV = self.logits(hidden_BRE[:, kept])
            loss = None
            if labels is not None:
                loss = self.loss_function(
                    logits=logits_BRV,
                    labels=labels,
                    shift_labels=None if attention_mask is None else _next_tokens(labels, attention_mask),
                    vocab_size=self.config.vocab_size,
                    num_items_in_batch=num_items_in_batch,
                )
            attentions = tuple(weights) if past is None else tuple(map(past.by_column, weights))
            if dynamic is not None and past is not None:
                fill(dynamic, past, before)
        read = (*states, hidden_BRE) if output_hidden_states else None
        # By place, since the cache has two names.
        returned = past if dynamic is None else dynamic
        output = CausalLMOutputWithPast(loss, logits_BRV, returned, read, attentions if output_attentions else None)
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return output.to_tuple() if as_tuple else read_by_both_names(output)

    def _past(self, given: TransformersCache | None, use_cache: bool, shape: tuple[int, int]) -> PastKeyValues | None:
        """Return the cache of a pass over `[batch, rows]`, with room for it; None without one."""
        batch, rows = shape
        if given is None:
            if not use_cache:
                return None
            given = PastKeyValues(self.new_cache(batch, 0))
        if not isinstance(given, PastKeyValues):
            raise UserError(f"cache is a {type(given).__name__}: leave it out, or give what an earlier pass returned.")
        if given.slots.batch != batch:
            raise UserError(f"cache has {given.slots.batch} texts, but there are {batch}: give as many.")
        given.make_room(rows)
        return given

    def _views(
        self, shape: tuple[int, int], mask: Tensor | None, position_ids: Tensor | None, past: PastKeyValues | None,
        packed: bool, backend: str | None,
    ) -> Views:  # fmt: skip
        """Return what `prepare` makes of transformers' arguments.

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
            seen = call.valid_of(mask)
            valid_BR = seen[:, before:]
            position_BR = (seen.long().cumsum(1) - 1).clamp(min=0)[:, before:]
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
            return self.prepare(visibility, labels, valid=valid_BR, backend=backend)
        past.columns += rows
        return self.prepare(visibility, labels, valid=valid_BR, cache=past.slots, backend=backend)


def _begins_anew(position_ids: Tensor | None) -> bool:
    """Return whether several texts are packed into a row, so that positions do not always rise by 1."""
    return position_ids is not None and bool((position_ids.diff() != 1).any())


def _next_tokens(labels_BR: Tensor, mask: Tensor) -> Tensor:
    """Return the label of the token after each, whatever padding lies between; the mask may begin in the cache."""
    return call.next_tokens(labels_BR, mask[:, -labels_BR.shape[1] :].bool())


ARGUMENTS = frozenset(inspect.signature(AnyOrderForCausalLM.forward).parameters) - {"others", "cache_position"}
"""Of the forward pass."""
