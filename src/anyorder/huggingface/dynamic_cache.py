"""Keys and values that another tool computed, such as the prefix of PEFT's prefix tuning.

Shape suffixes: B batch, G key-value heads, T tokens, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from anyorder.errors import UserError
from anyorder.huggingface.past import SPARE, PastKeyValues
from anyorder.model.llama import Llama

READ = "_read_by_anyorder"


def past_from(given: DynamicCache, network: Llama, batch: int, mask: Tensor | None) -> PastKeyValues:
    """The same keys and values in a cache of ours, differentiable.

    transformers' networks append to the cache that they are given. Here what a pass returns is another one, so the
    same `DynamicCache` is read once.

    Args:
        given: keys, rotated for the first positions, and values of each layer, `[batch, kv_heads, tokens, head_dim]`.
        network: that reads them.
        batch: number of texts.
        mask: 1 for tokens and 0 for padding, `[batch, at least tokens]`; no padding unless given.

    Raises:
        UserError: the cache is empty, of another network, or was read before.
    """
    remedy = "leave it out, or give what an earlier pass returned"
    held: list[Any] = list(given.layers)
    layers = [layer for layer in held if getattr(layer, "keys", None) is not None and layer.keys.numel()]
    kind = type(given).__name__
    if not layers:
        raise UserError(f"cache is a {kind}: {remedy}.")
    if getattr(given, READ, False):
        raise UserError(f"cache is a {kind} that was read before, and nothing was added to it: {remedy}.")
    config = network.config
    tokens = layers[0].keys.shape[2]
    shape = (batch, config.num_key_value_heads, tokens, config.head_dim)
    found = [tuple(layer.keys.shape) for layer in layers]
    if found != [shape] * config.num_hidden_layers:
        wanted = f"{config.num_hidden_layers} layers of {list(shape)}"
        raise UserError(f"cache has {len(found)} layers, the first of {list(found[0])}, not {wanted}: {remedy}.")
    if mask is not None and mask.shape[1] < tokens:
        raise UserError(f"attention_mask has {mask.shape[1]} columns, but cache {tokens}: give one for each.")
    past = PastKeyValues(network.new_cache(batch, tokens + SPARE))
    valid_BT = torch.ones((batch, tokens), dtype=torch.bool, device=network.device)
    if mask is not None:
        valid_BT = mask[:, :tokens].bool()
    column_BT = torch.arange(tokens, device=network.device).expand(batch, -1)
    position_BT = (valid_BT.long().cumsum(1) - 1).clamp(min=0)
    slots_BT = past.slots.put({"position": position_BT, "column": column_BT}, valid_BT)
    for ours, theirs in zip(past.slots.layers, layers, strict=True):
        ours.update(theirs.keys.transpose(1, 2), theirs.values.transpose(1, 2), slots_BT, tokens)
    past.columns = tokens
    setattr(given, READ, True)
    return past
