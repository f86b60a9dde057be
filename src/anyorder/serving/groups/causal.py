"""Texts from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Queries
from anyorder.serving.groups.cached import CachedGroup

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class CausalGroup(CachedGroup):
    """Texts from left to right."""

    def __init__(self, model: Llama) -> None:
        super().__init__(model, ("position",))
        self.reader: CausalReader | None = None
        self._passes = 0

    @property
    def passes(self) -> int:
        return self._passes

    def read_first(self, texts: Sequence[CausalText], behind: int, queries: Queries[Any]) -> Tensor:
        self._passes += 1
        prompts = [tuple(text.tokens) for text in texts]
        different = list(dict.fromkeys(prompts))
        cache = self.slots.with_room(behind + len(texts), max(map(len, prompts)))
        logits_MV = CausalReader(self.model, texts)._read(
            different, cache.samples(behind, behind + len(different))
        )  # fmt: skip
        # Equal prompts, as of several samples of one, are read once and copied; their samples come behind the others.
        number_of = {sample: different.index(prompt) for sample, prompt in zip(self.fresh, prompts, strict=True)}
        first_of = {number: sample for sample, number in reversed(number_of.items())}
        copies = [sample for sample in self.fresh if first_of[number_of[sample]] is not sample]
        for index, sample in enumerate(copies, start=behind + len(different)):
            cache.move(behind + number_of[sample], index)
        self.samples[behind:] = [*(first_of[number] for number in range(len(different))), *copies]
        return logits_MV[list(number_of.values())]

    def read_on(self, queries: Queries[Any]) -> Tensor:
        self._passes += 1
        texts = list(queries)
        cache = self.slots.in_use(len(texts), max(len(text.tokens) for text in texts))
        if self.reader is None or self.reader.cache is not cache or self.reader.texts != texts:
            self.reader = CausalReader(self.model, texts)
            self.reader.cache = cache
        return self.reader.logits(queries)
