"""Our cache under transformers' protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import Cache as TransformersCache

from anyorder.errors import UserError
from anyorder.model.cache import Cache

SPARE = 64
"""Slots that a cache of transformers' generation has at least for what comes next."""


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
    is_linear = [False]  # noqa: RUF012 (no layer keeps a state instead of keys)

    def __len__(self) -> int:
        return len(self.slots.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.slots.batch} texts, {self.columns} columns)"

    def make_room(self, columns: int) -> None:
        """Grow where this many more columns might not fit, by at least as much as there is."""
        needed, capacity = self.slots.extent + columns, self.slots.capacity
        if needed > capacity:
            everyone = torch.arange(self.slots.batch, device=self.slots.present.device)
            self.slots = self.slots.gather(everyone, capacity=max(needed + SPARE, 2 * capacity))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns that have been read."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1, which is transformers' number for no limit."""
        return -1

    @property
    def max_cache_len(self) -> int:
        """The same, under the name that PEFT reads."""
        return self.get_max_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return columns that a mask for this many more would have, and the first of them."""
        return self.columns + query_length, 0

    def by_column(self, weights_BHRS: Tensor) -> Tensor:
        """Arrange weights `[batch, heads, rows, slots]` by column, `[batch, heads, rows, columns]`."""
        used = weights_BHRS.shape[-1]
        column_BS = self.slots.labels["column"][:, :used].where(self.slots.present[:, :used], 0)
        placed_BHRC = weights_BHRS.new_zeros((*weights_BHRS.shape[:-1], self.columns))
        # Slots without a key have no weight, so that they may count for any column.
        return placed_BHRC.scatter_add(-1, column_BS[:, None, None].expand_as(weights_BHRS), weights_BHRS)

    def keys_and_values(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each layer's keys and values by column, from `first` on, `[batch, kv_heads, columns, head_dim]`."""
        column_BS = self.slots.labels["column"]
        sample_N, slot_N = (self.slots.present & (column_BS >= first)).nonzero(as_tuple=True)
        held_BC = torch.zeros((self.slots.batch, self.columns - first), dtype=torch.bool, device=column_BS.device)
        slot_BC = torch.zeros_like(held_BC, dtype=torch.long)
        column_N = column_BS[sample_N, slot_N] - first
        held_BC[sample_N, column_N] = True
        slot_BC[sample_N, column_N] = slot_N
        sample_B1 = torch.arange(self.slots.batch, device=column_BS.device).unsqueeze(1)
        for layer in self.slots.layers:
            keys, values = (
                all_BSGD[sample_B1, slot_BC].where(held_BC[..., None, None], 0).transpose(1, 2)
                for all_BSGD in (layer.keys, layer.values)
            )
            yield keys, values

    def reset(self) -> None:
        """Forget everything."""
        self.crop(-self.columns)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns; their number is negative.

        Raises:
            UserError: it is positive, which meant a length up to transformers 5.17.
        """
        if tokens_to_remove > 0:
            raise UserError(f"crop is {tokens_to_remove}: give the number of tokens to remove, as a negative number.")
        self.columns += tokens_to_remove
        if self.slots.labels:
            self.slots.drop(self.slots.labels["column"] >= self.columns)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace the keys of each text by those of the text named, `[batch]`."""
        self.slots = self.slots.gather(beam_idx.to(self.slots.present.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the texts named, `[new batch]`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each text so many times, next to each other."""
        self.reorder_cache(torch.arange(self.slots.batch).repeat_interleave(repeats))


@contextmanager
def undone_on_error(past: PastKeyValues | None) -> Iterator[None]:
    """Within the block, an exception or interrupt removes the columns that have been added to a cache."""
    before = 0 if past is None else past.columns
    try:
        yield
    except BaseException:
        if past is not None:
            past.crop(before - past.columns)
        raise
