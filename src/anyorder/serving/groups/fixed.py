"""Samples of one request that begin together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anyorder.decoding.loop import Queries, Reader
from anyorder.serving.groups.group import ReaderGroup
from anyorder.serving.groups.sample import Sample


class FixedGroup(ReaderGroup):
    """Samples of one request that begin together: their reader takes no others.

    Args:
        reader: of their texts.
    """

    def __init__(self, reader: Reader[Any]) -> None:
        super().__init__()
        self.reader = reader

    @property
    def is_open(self) -> bool:
        return self.reader.passes == 0

    @property
    def passes(self) -> int:
        return self.reader.passes

    def turn(self) -> Sequence[Sample]:
        texts = set(self.reader.next_batch([sample.text for sample in self.samples]))
        return [sample for sample in self.samples if sample.text in texts]

    def logits(self, samples: Sequence[Sample], queries: Queries[Any]) -> Tensor:
        return self.reader.logits(queries)
