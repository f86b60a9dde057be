"""Canvases that are filled in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anyorder.decoding.any_order.reader import TwoStreamReader
from anyorder.decoding.any_order.text import AnyOrderText
from anyorder.decoding.loop import Queries
from anyorder.serving.groups.cached import CachedGroup

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class TwoStreamGroup(CachedGroup):
    """Canvases that are filled in any order."""

    def __init__(self, model: Llama) -> None:
        super().__init__(model, ("position", "rank", "stream"))
        self.reader = TwoStreamReader(model, [], use_cache=False)
        self.reader.texts = []

    @property
    def passes(self) -> int:
        return self.reader.passes

    def read_first(self, texts: Sequence[AnyOrderText], behind: int, queries: Queries[Any]) -> Tensor:
        reader = TwoStreamReader(self.model, texts, use_cache=False)
        cache = self.slots.with_room(behind + len(texts), max(len(text.tokens) for text in texts))
        reader.cache = cache.samples(behind, behind + len(texts))
        logits_NV = reader.logits(queries)
        self.reader.texts = [*self.reader.texts, *texts]
        self.reader.seen += reader.seen
        self.reader.passes += 1
        return logits_NV

    def read_on(self, queries: Queries[Any]) -> Tensor:
        texts = self.reader.texts
        self.reader.cache = self.slots.in_use(len(texts), max(len(text.tokens) for text in texts))
        return self.reader.logits(queries)

    def _swap_out(self, place: int, last: int) -> None:
        texts = list(self.reader.texts)
        texts[place], self.reader.seen[place] = texts[last], self.reader.seen[last]
        self.reader.texts = texts[:last]
        del self.reader.seen[last]
