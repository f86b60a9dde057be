"""Passes of two streams while a text is written: content rows that are read, and query rows that predict.

Shape suffixes: B texts, C content rows, K query rows, R = C + K rows, E hidden size, N query rows of all texts, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from anyorder.decoding.any_order.text import AnyOrderText, Content
from anyorder.decoding.canvas import PLAIN, CanvasLayout
from anyorder.decoding.loop import Queries, Reader
from anyorder.visibility import bidirectional, groups

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class Query(NamedTuple):
    """A position to predict; it sees ranks below its own."""

    position: int
    rank: int


class TwoStreamReader(Reader[AnyOrderText]):
    """Runs both streams over texts that grow group by group.

    With a cache, content rows are read once and query rows leave nothing behind; without one, all that was read is
    read again.

    Args:
        model: a network with query rows.
        texts: the batch.
        use_cache: False reads all again in each pass (slow reference path).
        layout: of the texts as canvases.
    """

    def __init__(
        self, model: Llama, texts: Sequence[AnyOrderText], *, use_cache: bool, layout: CanvasLayout = PLAIN
    ) -> None:
        self.model = model
        self.texts = texts
        self.layout = layout
        self.cache = model.new_cache(len(texts), max(len(text.tokens) for text in texts)) if use_cache else None
        self.seen: list[list[Content]] = [[] for _ in texts]

    def logits(self, queries: Queries[AnyOrderText]) -> Tensor:
        """Read what is fresh, and return the logits of the queries, `[N, V]`."""
        content = [text.fresh if text in queries else [] for text in self.texts]
        return self.read(content, [[Query(at, text.rank) for at in queries.get(text, ())] for text in self.texts])

    def read(self, content: Sequence[Sequence[Content]], queries: Sequence[Sequence[Query]]) -> Tensor:
        """Run one pass, and return the logits of each query row, `[N, V]`.

        Args:
            content: for each text, the tokens that have not been read yet, by rank.
            queries: for each text, the positions to predict.
        """
        self.passes += 1
        model, device = self.model, self.model.device
        # A group over what has been read, and positions behind it: all may see all that there is.
        simple = any(self.seen) and all(map(_is_one_group, content, queries))
        for known, fresh in zip(self.seen, content, strict=True):
            known += fresh
        rows = content if self.cache is not None else self.seen
        n_keys, width = max(map(len, rows)), max(map(len, queries))
        position_BR, rank_BR, stream_BR, ids_BR, valid_BR = _columns(rows, queries, n_keys, width, device)
        valid_BR = valid_BR.bool()
        labels = {"position": position_BR, "rank": rank_BR, "stream": stream_BR}
        visibility = bidirectional() if simple and self.cache is not None else groups()
        visibility, labels, others = self.layout.narrow(range(len(rows)), visibility, labels)
        views = model.prepare(visibility, labels, n_keys=n_keys, valid=valid_BR, cache=self.cache, **others)
        hidden_BRE = model.two_streams(ids_BR[:, :n_keys], labels["position"][:, n_keys:], views, self.cache)
        return model.logits(hidden_BRE[:, n_keys:][valid_BR[:, n_keys:]])

    def forget(self, first_rank: Sequence[int]) -> None:
        """Forget the tokens of each text from this rank on."""
        self.seen = [[row for row in text if row.rank < rank] for text, rank in zip(self.seen, first_rank, strict=True)]
        if self.cache is not None:
            rank_B1 = torch.tensor(first_rank, device=self.model.device).unsqueeze(1)
            self.cache.drop(self.cache.labels["rank"] >= rank_B1)


def _is_one_group(content: Sequence[Content], queries: Sequence[Query]) -> bool:
    ranks = {row.rank for row in content}
    return len(ranks) < 2 and all(query.rank > rank for query in queries for rank in ranks)


def _columns(
    content: Sequence[Sequence[Content]], queries: Sequence[Sequence[Query]], n_keys: int, width: int,
    device: torch.device,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return position, rank, stream, token id and validity of all rows, each `[batch, rows]`: one transfer for all."""
    rows = [
        [(at, rank, 0, token_id, 1) for at, token_id, rank in of_text]
        + [(0, 0, 0, 0, 0)] * (n_keys - len(of_text))
        + [(at, rank, 1, 0, 1) for at, rank in of_queries]
        + [(0, 0, 1, 0, 0)] * (width - len(of_queries))
        for of_text, of_queries in zip(content, queries, strict=True)
    ]
    return torch.tensor(rows, device=device).unbind(-1)
