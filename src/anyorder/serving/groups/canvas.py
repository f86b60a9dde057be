"""Canvases by diffusion that are read whole in each pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from anyorder.decoding.diffusion.reader import CanvasReader
from anyorder.decoding.loop import Queries
from anyorder.serving.groups.group import ReaderGroup
from anyorder.serving.groups.sample import Sample


class CanvasGroup(ReaderGroup):
    """Canvases by diffusion that are read whole in each pass, so that any may join and leave.

    Args:
        new_reader: makes the reader of some of them.
    """

    def __init__(self, new_reader: Callable[[Sequence[Any]], CanvasReader]) -> None:
        super().__init__()
        self.new_reader = new_reader
        self.reader: CanvasReader | None = None
        self._passes = 0

    @property
    def passes(self) -> int:
        return self._passes

    def join(self, samples: Sequence[Sample]) -> None:
        super().join(samples)
        self.reader = None

    def logits(self, samples: Sequence[Sample], queries: Queries[Any]) -> Tensor:
        self._passes += 1
        if self.reader is None:
            self.reader = self.new_reader([sample.text for sample in samples])
        return self.reader.logits(queries)
