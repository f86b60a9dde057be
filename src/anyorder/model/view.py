"""What a layer takes of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.attention import AttentionMask


@dataclass(frozen=True)
class View:
    """What the layers of one kind take of a forward pass: made once, before the first layer.

    Attributes:
        n_keys: the first `n_keys` rows are keys and values, too.
        mask: who sees whom.
        cos_sin: of each row's rotary angles, each `[batch, rows, 1, head_dim / 2]`; None: no rotary.
        query_scale: factor of each row's queries, `[batch, rows, 1, 1]`; None: 1.
        valid: which of the rows that go on are no padding, boolean; None: all.
        block: number of the block of each row that goes on, where experts are chosen by the block; otherwise None.
        slots: cache slots that the new keys are written to, `[batch, n_keys]`; None: no cache.
        extent: number of cache slots that are read.
        queries: indices of the rows that attend and are returned, `[batch, queries]`; None: all. The others are keys
            and values alone.
    """

    n_keys: int
    mask: AttentionMask
    cos_sin: tuple[Tensor, Tensor] | None
    query_scale: Tensor | None = None
    valid: Tensor | None = None
    block: Tensor | None = None
    slots: Tensor | None = None
    extent: int = 0
    queries: Tensor | None = None

    def queries_of(self, rows_BR: Tensor) -> Tensor:
        """Those of the rows `[batch, rows, ...]` that attend: `[batch, queries, ...]`."""
        if self.queries is None:
            return rows_BR
        sample_B1 = torch.arange(len(self.queries), device=self.queries.device).unsqueeze(1)
        return rows_BR[sample_B1, self.queries]
