"""Keys and values of rows that have been read, so that later rows need not read them again.

A cache has no length: each sample has slots, `present` alone says which of them hold a key, and the
labels stored beside it say whose key that is. So samples of different lengths, orders and histories
share one cache, and neither left nor right alignment means anything.

Shape suffixes: B batch, S slots, K new keys, G key-value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.visibility import Labels


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values, each `[batch, capacity + 1, kv_heads, head_dim]`.

    The last slot is waste: padding rows write there, and it is never present.
    """

    keys: Tensor
    values: Tensor

    def update(self, k_BKGD: Tensor, v_BKGD: Tensor, slots_BK: Tensor, extent: int) -> tuple[Tensor, Tensor]:
        """Write new keys and values, in place, and return the first `extent` slots of all."""
        sample_B1 = torch.arange(slots_BK.shape[0], device=slots_BK.device).unsqueeze(1)
        self.keys[sample_B1, slots_BK] = k_BKGD.to(self.keys.dtype)  # under autocast new keys are narrower
        self.values[sample_B1, slots_BK] = v_BKGD.to(self.values.dtype)
        return self.keys[:, :extent], self.values[:, :extent]


class Cache:
    """The keys and values of all layers, with the labels of the rows that wrote them.

    `present` and `labels` have a waste slot too, behind those that are shown.

    Attributes:
        layers: one `LayerCache` a layer.
    """

    def __init__(self, layers: list[LayerCache], batch: int, capacity: int, device: torch.device) -> None:
        self.layers = layers
        self._present = torch.zeros((batch, capacity + 1), dtype=torch.bool, device=device)
        self._labels: dict[str, Tensor] = {}

    @classmethod
    def empty(
        cls, n_layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int, *, dtype: torch.dtype,
        device: torch.device,
    ) -> Cache:  # fmt: skip
        """A cache that holds nothing. Slots start as zeros: garbage behind a mask still makes NaN."""
        shape = (batch, capacity + 1, kv_heads, head_dim)
        layers = [
            LayerCache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(n_layers)
        ]
        return cls(layers, batch, capacity, device)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self._present.shape[0]

    @property
    def capacity(self) -> int:
        """Number of slots of each sample."""
        return self._present.shape[1] - 1

    @property
    def present(self) -> Tensor:
        """Which slots hold a key, boolean `[batch, capacity]`."""
        return self._present[:, :-1]

    @property
    def labels(self) -> dict[str, Tensor]:
        """Label name to integers `[batch, capacity]`."""
        return {name: label[:, :-1] for name, label in self._labels.items()}

    @property
    def next_slot(self) -> Tensor:
        """Where each sample appends, behind its last present slot: int64 `[batch]`."""
        slot_S = torch.arange(1, self.capacity + 1, device=self.present.device)
        return (self.present * slot_S).amax(1) if self.capacity else slot_S.new_zeros(self.batch)

    @property
    def extent(self) -> int:
        """Number of slots, counted from the first, beyond which no sample holds a key."""
        return int(self.next_slot.max())

    def put(self, labels: Labels, valid: Tensor | None = None, slots: Tensor | None = None) -> Tensor:
        """Make room for new keys, and note their labels; each layer then writes its own part.

        Args:
            labels: of the new keys, each `[batch, n]`; the same names at every call.
            valid: which of them exist, boolean `[batch, n]`; all unless given. The others go to waste.
            slots: slots to overwrite, `[batch, n]`; appended behind the last present slot unless given.

        Returns:
            The slot of each new key, `[batch, n]`.

        Raises:
            UserError: there are not enough slots, or the labels are others than before.
        """
        valid_BK = torch.ones_like(labels["position"], dtype=torch.bool) if valid is None else valid
        if not self._labels:
            self._labels = {name: torch.zeros_like(self._present, dtype=torch.long) for name in labels}
        if set(labels) != set(self._labels):
            raise UserError(f"the cache holds the labels {sorted(self._labels)}, not {sorted(labels)}: give those.")
        slots_BK = self.next_slot.unsqueeze(1) + valid_BK.cumsum(1) - 1 if slots is None else slots
        slots_BK = slots_BK.masked_fill(~valid_BK, self.capacity)
        if not torch.compiler.is_compiling():  # a compiled step is given a cache that is large enough
            self._require_room(slots_BK.masked_fill(~valid_BK, -1))
        self._present.scatter_(1, slots_BK, valid_BK)
        for name, label in labels.items():
            self._labels[name].scatter_(1, slots_BK, label)
        return slots_BK

    def _require_room(self, slots_BK: Tensor) -> None:
        needed = int(slots_BK.max()) + 1 if slots_BK.numel() else 0
        if needed > self.capacity:
            raise UserError(f"the cache has {self.capacity} slots and {needed} are needed: make a larger one.")

    def gather(
        self, batch: Tensor, slots: Tensor | None = None, keep: Tensor | None = None, capacity: int | None = None
    ) -> Cache:
        """A new cache from parts of this one: expand, join, trim, reorder, grow.

        Args:
            batch: the sample that each new sample copies, `[new batch]`, or each new slot of it,
                `[new batch, n]`.
            slots: the slot that each new slot copies, `[new batch, n]`; all in order unless given.
            keep: new slots that shall be present if their source is, boolean `[new batch, n]`.
            capacity: slots of the new cache; n unless given.

        Raises:
            UserError: `capacity` is smaller than n.
        """
        batch_BS = batch if batch.dim() == 2 else batch.unsqueeze(1)
        if slots is None:
            slots = torch.arange(self.capacity, device=batch.device).unsqueeze(0)
        n = torch.broadcast_shapes(batch_BS.shape, slots.shape)[1]
        capacity = n if capacity is None else capacity
        if capacity < n:
            raise UserError(f"capacity is {capacity} and {n} slots are kept: give at least that many.")
        present_BS = self.present[batch_BS, slots]
        new = Cache([], len(present_BS), capacity, present_BS.device)
        new._present[:, :n] = present_BS if keep is None else present_BS & keep
        for name, label in self.labels.items():
            new._labels[name] = label.new_zeros((len(present_BS), capacity + 1))
            new._labels[name][:, :n] = label[batch_BS, slots]
        for layer in self.layers:
            shape = (len(present_BS), capacity + 1, *layer.keys.shape[2:])
            copy = LayerCache(layer.keys.new_zeros(shape), layer.values.new_zeros(shape))
            copy.keys[:, :n] = layer.keys[batch_BS, slots]
            copy.values[:, :n] = layer.values[batch_BS, slots]
            new.layers.append(copy)
        return new

    def samples(self, start: int, stop: int) -> Cache:
        """Return a view of neighbouring samples, which shares its memory with this cache: what is put there is here.

        Args:
            start: the first sample.
            stop: the one behind the last.

        Raises:
            UserError: nothing was put into this cache yet, so that its labels are not known.
        """
        if not self._labels:
            raise UserError("a cache without labels has no view: put rows into it first, if only none of them.")
        part = slice(start, stop)
        layers = [LayerCache(layer.keys[part], layer.values[part]) for layer in self.layers]
        view = Cache(layers, 0, 0, self._present.device)
        view._present = self._present[part]
        view._labels = {name: label[part] for name, label in self._labels.items()}
        return view

    def move(self, source: int, target: int) -> None:
        """Overwrite one sample by another, which stays as it is."""
        slots = slice(0, int(self.next_slot[source]))
        self._present[target] = self._present[source]
        for label in self._labels.values():
            label[target] = label[source]
        for layer in self.layers:
            layer.keys[target, slots] = layer.keys[source, slots]
            layer.values[target, slots] = layer.values[source, slots]

    def reorder(self, parents: Tensor, start: int) -> None:
        """Each sample has the slots from `start` on of the one named, `[batch]`, and those before as they were."""
        behind = slice(start, self.capacity)
        self._present[:, behind] = self._present[parents, behind]
        for label in self._labels.values():
            label[:, behind] = label[parents, behind]
        for layer in self.layers:
            layer.keys[:, behind] = layer.keys[parents, behind]
            layer.values[:, behind] = layer.values[parents, behind]

    def drop(self, where: Tensor) -> None:
        """Forget the keys in these slots, boolean `[batch, capacity]`; trailing slots are used again."""
        self._present[:, :-1] &= ~where
