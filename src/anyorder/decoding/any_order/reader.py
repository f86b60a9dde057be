"""One pass of two streams while a text is written: tokens that are read, and places that are asked about.

Shape suffixes: B texts, C content rows, K query rows, R = C + K rows, E hidden size, N query rows of all texts, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anyorder.decoding.fusion.canvases import FusedCanvases, apart
from anyorder.visibility import bidirectional, groups

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class Content(NamedTuple):
    """A token to be read: it sees ranks up to its own."""

    position: int
    token_id: int
    rank: int


class Query(NamedTuple):
    """A place to be asked about: it sees ranks below its own."""

    position: int
    rank: int


class Reader:
    """The network's scores for places of texts that grow group by group.

    With a cache, content rows are read once and query rows leave nothing behind; without one, all that was read is
    read again.

    Args:
        model: a network with query rows.
        texts: number of texts.
        capacity: tokens of the longest one, for the cache; None for none.
        fused: where phrasings of questions stand in them; None where there are none.
    """

    def __init__(
        self, model: Llama, texts: int, capacity: int | None, fused: FusedCanvases | None = None
    ) -> None:  # fmt: skip
        self.model = model
        self.fused = fused
        self.cache = None if capacity is None else model.new_cache(texts, capacity)
        self.read: list[list[Content]] = [[] for _ in range(texts)]

    def logits(self, content: Sequence[Sequence[Content]], queries: Sequence[Sequence[Query]]) -> Tensor:
        """Scores for each query row, text by text: `[N, vocabulary]`.

        Args:
            content: for each text, the tokens that have not been read yet, by rank.
            queries: for each text, the places to ask about.
        """
        model, device = self.model, self.model.device
        # A group over what has been read, and places behind it: all may see all that there is.
        simple = any(self.read) and all(map(_is_one_group, content, queries))
        for known, fresh in zip(self.read, content, strict=True):
            known += fresh
        rows = content if self.cache is not None else self.read
        n_keys, width = max(map(len, rows)), max(map(len, queries))
        position_BR, valid_BR = _columns(rows, queries, n_keys, width, "position", device)
        rank_BR, _ = _columns(rows, queries, n_keys, width, "rank", device)
        stream_BR = (torch.arange(n_keys + width, device=device) >= n_keys).long().expand_as(rank_BR)
        labels = {"position": position_BR, "rank": rank_BR, "stream": stream_BR}
        visibility = bidirectional() if simple and self.cache is not None else groups()
        others: dict[str, Any] = {}
        if self.fused is not None:
            sight = self.fused.sight(range(len(rows)), position_BR)
            labels, visibility = labels | sight.labels, visibility & apart()
            others = {"bias": sight.bias, "tempered": sight.tempered, "rotary_positions": sight.rotary_positions}
        views = model.prepare(visibility, labels, n_keys=n_keys, valid=valid_BR, cache=self.cache, **others)
        ids_BC = torch.tensor(_padded([[row.token_id for row in text] for text in rows], n_keys), device=device)
        hidden_BRE = model.two_streams(ids_BC.long(), labels["position"][:, n_keys:], views, self.cache)
        return model.logits(hidden_BRE[:, n_keys:][valid_BR[:, n_keys:]])

    def forget(self, first_rank: Sequence[int]) -> None:
        """Forgets, of each text, the tokens from this rank on."""
        self.read = [[row for row in text if row.rank < rank] for text, rank in zip(self.read, first_rank, strict=True)]
        if self.cache is not None:
            rank_B1 = torch.tensor(first_rank, device=self.model.device).unsqueeze(1)
            self.cache.drop(self.cache.labels["rank"] >= rank_B1)


def _is_one_group(content: Sequence[Content], queries: Sequence[Query]) -> bool:
    ranks = {row.rank for row in content}
    return len(ranks) < 2 and all(query.rank > rank for query in queries for rank in ranks)


def _columns(
    content: Sequence[Sequence[Content]], queries: Sequence[Sequence[Query]], n_keys: int, width: int, label: str,
    device: torch.device,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A label of all rows, and which rows are no padding, each `[batch, rows]`."""
    left = _padded([[getattr(row, label) for row in text] for text in content], n_keys)
    right = _padded([[getattr(row, label) for row in text] for text in queries], width)
    column_BR = torch.tensor([a + b for a, b in zip(left, right, strict=True)], device=device)
    counts = [(len(a), len(b)) for a, b in zip(content, queries, strict=True)]
    valid = [[*_marks(a, n_keys), *_marks(b, width)] for a, b in counts]
    return column_BR, torch.tensor(valid, dtype=torch.bool, device=device)


def _padded(rows: Sequence[Sequence[int]], width: int) -> list[list[int]]:
    return [[*row, *[0] * (width - len(row))] for row in rows]


def _marks(count: int, width: int) -> list[bool]:
    return [True] * count + [False] * (width - count)
