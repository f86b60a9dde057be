"""Samples that share a cache of keys, which grows and shrinks with them.

Shapes: N queries (positions of all samples, sample after sample), V tokens of the vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyorder.decoding.loop import Queries
from anyorder.serving.groups.group import ReaderGroup
from anyorder.serving.groups.sample import Sample

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama

SMALLEST_CAPACITY = 256
"""Cache slots of a sample at least; more are taken in powers of two."""


class Slots:
    """A cache whose first samples are in use, which grows in powers of two.

    Args:
        model: the network.
        labels: names of those that its rows carry.
    """

    def __init__(self, model: Llama, labels: Sequence[str]) -> None:
        self.model = model
        self.labels = labels
        self.cache: Cache | None = None
        self._view: tuple[Cache, int, Cache] | None = None

    def in_use(self, batch: int, tokens: int) -> Cache:
        """Return the first samples, with room for so many tokens: the same view for as long as nothing changes."""
        cache = self.with_room(batch, tokens)
        if self._view is None or self._view[0] is not cache or self._view[1] != batch:
            self._view = (cache, batch, cache.samples(0, batch))
        return self._view[2]

    def with_room(self, batch: int, tokens: int) -> Cache:
        """Return the cache, with room for so many samples of so many tokens at least."""
        old = self.cache
        if old is not None and batch <= old.batch and tokens <= old.capacity:
            return old
        batch, tokens = _bucket(batch, 1), _bucket(tokens, SMALLEST_CAPACITY)
        if old is None:
            self.cache = self.model.new_cache(batch, tokens)
            empty = torch.zeros((batch, 0), dtype=torch.long, device=self.model.device)
            self.cache.put(dict.fromkeys(self.labels, empty))
        else:
            batch, capacity = max(batch, old.batch), max(tokens, old.capacity)
            source = torch.arange(batch, device=self.model.device)
            known = (source < old.batch).unsqueeze(1).expand(batch, old.capacity)
            self.cache = old.gather(source.clamp(max=old.batch - 1), keep=known, capacity=capacity)
        return self.cache

    def free(self, sample: int, last: int) -> None:
        """Free a sample: the last one that is in use takes its place."""
        assert self.cache is not None
        if sample != last:
            self.cache.move(last, sample)
        where = torch.zeros_like(self.cache.present)
        where[last] = True
        self.cache.drop(where)

    def clear(self) -> None:
        """Give the memory back."""
        self.cache = self._view = None


def _bucket(number: int, smallest: int) -> int:
    """The next power of two, at least the smallest."""
    return max(smallest, 1 << (number - 1).bit_length())


class CachedGroup(ReaderGroup):
    """Samples that share a cache, one slot row each: new ones are read by a pass of their own, and then join.

    Args:
        model: the network.
        labels: names of those that rows in the cache carry.
    """

    def __init__(self, model: Llama, labels: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.slots = Slots(model, labels)
        self.fresh: list[Sample] = []

    def join(self, samples: Sequence[Sample]) -> None:
        super().join(samples)
        self.fresh += samples

    def leave(self, sample: Sample) -> None:
        if sample in self.fresh:
            self.fresh.remove(sample)
            self.samples.remove(sample)
            return
        place, last = self.samples.index(sample), len(self.samples) - len(self.fresh) - 1
        self.slots.free(place, last)
        self._swap_out(place, last)
        # Samples keep the order of their slots; those that have none yet come behind.
        self.samples[place] = self.samples[last]
        del self.samples[last]
        if not self.samples:
            self.slots.clear()

    def turn(self) -> Sequence[Sample]:
        return self.fresh or self.samples

    def logits(self, samples: Sequence[Sample], queries: Queries[Any]) -> Tensor:
        if not self.fresh:
            return self.read_on(queries)
        behind = len(self.samples) - len(self.fresh)
        logits_NV = self.read_first([sample.text for sample in self.fresh], behind, queries)
        self.fresh = []
        return logits_NV

    @abstractmethod
    def read_first(self, texts: Sequence[Any], behind: int, queries: Queries[Any]) -> Tensor:
        """Read new texts, whose slots are behind so many that are in use."""

    @abstractmethod
    def read_on(self, queries: Queries[Any]) -> Tensor:
        """Read what is new in all texts."""

    def _swap_out(self, place: int, last: int) -> None:
        """Let the last text that has slots take the place of one that leaves."""
