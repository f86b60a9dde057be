"""The one-token step of decoding, one function that can be compiled as a whole.

Eager PyTorch spends its time between operations when a row is short: about 30 calls a layer. As one
graph the same step runs several times faster on a CPU (`anyorder bench`).

Shape suffixes: B batch, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from anyorder.model.cache import Cache
from anyorder.model.llama import Llama
from anyorder.visibility import causal

SMALLEST_EXTENT = 128
"""Cache slots that a compiled step reads at least; more are read in powers of two."""


def step_extent(keys: int, capacity: int) -> int:
    """Slots to read when samples hold at most `keys` keys: few different numbers, and at most twice what is needed."""
    return min(capacity, max(SMALLEST_EXTENT, 1 << (keys - 1).bit_length()))


def one_token(model: Llama, ids_B1: Tensor, position_B1: Tensor, valid_B1: Tensor, cache: Cache, extent: int) -> Tensor:
    """One token per sample over the cache, left to right: logits `[batch, vocabulary]`. No decision depends on data."""
    views = model.prepare(causal(), {"position": position_B1}, valid=valid_B1, cache=cache, extent=extent)
    return model.logits(model.hidden(ids_B1, views, cache)[:, 0])
