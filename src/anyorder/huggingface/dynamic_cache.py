"""transformers' `DynamicCache` as a caller's cache: read by a pass, and filled by it.

A caller gives an empty one and goes on with it, or one that another tool has filled, such as PEFT's prefix tuning.

Shape suffixes: B batch, G key-value heads, T tokens, D head dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from anyorder.errors import UserError
from anyorder.huggingface.past import SPARE, PastKeyValues
from anyorder.model import call
from anyorder.model.llama import Llama

COPY = "_copy_of_anyorder"
"""Attribute of a `DynamicCache` that a pass has filled."""


class Copy(NamedTuple):
    """What a `DynamicCache` holds, in our form, which also knows the padding; valid while it holds the same tensors."""

    past: PastKeyValues
    keys: list[Tensor]


def past_from(given: DynamicCache, model: Llama, batch: int, mask: Tensor | None) -> PastKeyValues:
    """Return the same keys and values in a cache of ours, differentiable.

    Args:
        given: keys, rotated for the first positions, and values of each layer, `[batch, kv_heads, tokens, head_dim]`;
            or nothing yet.
        model: reads them.
        batch: number of texts.
        mask: 1 for tokens and 0 for padding, `[batch, at least tokens]`; no padding unless given.

    Raises:
        UserError: the cache is of another model.
    """
    layers = _filled_layers(given)
    if not layers:
        return PastKeyValues(model.new_cache(batch, SPARE))
    copy: Copy | None = getattr(given, COPY, None)
    if copy is not None and _same(copy.keys, [layer.keys for layer in layers]):
        return copy.past
    config = model.config
    tokens = layers[0].keys.shape[2]
    shape = (batch, config.num_key_value_heads, tokens, config.head_dim)
    found = [tuple(layer.keys.shape) for layer in layers]
    if found != [shape] * config.num_hidden_layers:
        wanted = f"{config.num_hidden_layers} layers of {list(shape)}"
        remedy = "leave it out, or give what an earlier pass returned"
        raise UserError(f"cache has {len(found)} layers, the first of {list(found[0])}, not {wanted}: {remedy}.")
    if mask is not None and mask.shape[1] < tokens:
        raise UserError(f"attention_mask has {mask.shape[1]} columns, but cache {tokens}: give one for each.")
    past = PastKeyValues(model.new_cache(batch, tokens + SPARE))
    valid_BT = torch.ones((batch, tokens), dtype=torch.bool, device=model.device)
    if mask is not None:
        valid_BT = call.valid_of(mask[:, :tokens])
    column_BT = torch.arange(tokens, device=model.device).expand(batch, -1)
    position_BT = (valid_BT.long().cumsum(1) - 1).clamp(min=0)
    slots_BT = past.slots.put({"position": position_BT, "column": column_BT}, valid_BT)
    for ours, theirs in zip(past.slots.layers, layers, strict=True):
        ours.update(theirs.keys.transpose(1, 2), theirs.values.transpose(1, 2), slots_BT, tokens)
    past.columns = tokens
    return past


def fill(given: DynamicCache, past: PastKeyValues, first: int) -> None:
    """Append what a pass has added to its cache, from the column `first` on, as transformers' networks do.

    Columns of padding hold zeros. An exception or interrupt leaves all layers as they were.
    """
    before = [(layer, vars(layer).copy()) for layer in given.layers]
    try:
        for number, (keys_BGTD, values_BGTD) in enumerate(past.keys_and_values(first)):
            given.update(keys_BGTD, values_BGTD, number)
    except BaseException:
        for layer, attributes in before:
            vars(layer).clear()
            vars(layer).update(attributes)
        del given.layers[len(before) :]
        raise
    setattr(given, COPY, Copy(past, [layer.keys for layer in _filled_layers(given)]))


def _filled_layers(given: DynamicCache) -> list[Any]:
    held: list[Any] = list(given.layers)
    return [layer for layer in held if getattr(layer, "keys", None) is not None and layer.keys.numel()]


def _same(before: list[Tensor], now: list[Tensor]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
