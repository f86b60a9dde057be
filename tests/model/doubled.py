"""Two streams by the slow, obvious way: every token twice, once read and once asked about."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anyorder.model.config import LayerKind
from anyorder.model.llama import Llama
from tests.model.oracle import narrowed, oracle_logits


def oracle_query_rows(model: Llama, positions: Sequence[int]) -> Tensor:
    """The rows that only look, number by number: `[positions, hidden]`."""
    start = model.get_parameter("query_rows.start.weight").detach().double()[0]
    projection = model.get_parameter("query_rows.position.weight").detach().double()
    half = projection.shape[1] // 2
    rows = []
    for position in positions:
        angles = [position / 10_000 ** (index / half) for index in range(half)]
        features = torch.tensor(
            [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles], dtype=torch.float64
        )
        rows.append(start + projection @ features)
    return torch.stack(rows)


def doubled_logits(model: Llama, ids: Sequence[int], ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scores of the content rows and of the query rows of `[tokens ; query rows]`, each `[length, vocabulary]`."""
    length = len(ids)

    def sees(kind: LayerKind, query: int, key: int) -> bool:
        at = query % length
        shown = ranks[key] <= ranks[at] if query < length else ranks[key] < ranks[at]
        return shown and narrowed(kind, at, key)

    queries = oracle_query_rows(model, range(length))
    logits = oracle_logits(model, ids, [*range(length), *range(length)], sees, length, queries=queries)
    return logits[:length], logits[length:]


def doubled_log_probs(model: Llama, ids: Sequence[int], ranks: Sequence[int]) -> Tensor:
    """Of each token, given those of lower rank: `[length]`."""
    return doubled_logits(model, ids, ranks)[1].log_softmax(-1)[range(len(ids)), list(ids)]
