"""Texts of several lengths in one tensor, texts that are equal, and log-probabilities in a dtype wide enough for them.

Shapes: B texts, R tokens of the longest, N rows of logits, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

EntryT = TypeVar("EntryT", bound=Hashable)


def pad(rows: Sequence[Sequence[int]], device: torch.device, *, filling: int = 0) -> tuple[Tensor, Tensor]:
    """Pad ragged rows on the right.

    Args:
        rows: whole numbers.
        device: of the result.
        filling: value of padding.

    Returns:
        The numbers, int64 `[B, R]`, and which of them are no padding, boolean `[B, R]`.
    """
    width = max(map(len, rows), default=0)
    shape = (len(rows), width)  # which a list of no rows does not have
    padded = torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows], dtype=torch.int64, device=device)
    return padded.view(shape), _valid(rows, width, device).view(shape)


def pad_right(
    fresh: Sequence[Sequence[int]], start: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a ragged batch as tensors: ids, positions, and which rows are no padding, each `[B, R]`.

    `start` is the position of the first id of each sequence. Padding has id and position 0.
    """
    width = max(map(len, fresh))
    ids, positions = [], []
    for of_text, first in zip(fresh, start, strict=True):
        padding = [0] * (width - len(of_text))
        ids.append([*of_text, *padding])
        positions.append([*range(first, first + len(of_text)), *padding])
    return torch.tensor(ids, device=device), torch.tensor(positions, device=device), _valid(fresh, width, device)


def _valid(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    valid = [[True] * len(row) + [False] * (width - len(row)) for row in rows]
    return torch.tensor(valid, dtype=torch.bool, device=device)


def distinct(entries: Sequence[EntryT], device: torch.device) -> tuple[list[EntryT], Tensor]:
    """Return the different entries, in their order, and the index of each entry among them, int64 `[entries]`."""
    index = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return list(index), torch.tensor([index[entry] for entry in entries], device=device)


def log_softmax(logits_NV: Tensor) -> Tensor:
    """Return log-probabilities `[N, V]`, in float32 at least."""
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)


def log_probs_of(logits_NV: Tensor, token_N: Tensor) -> Tensor:
    """Return the log-probability of one token per row, `[N]`, in float32 at least."""
    return log_softmax(logits_NV).gather(-1, token_N.unsqueeze(-1)).squeeze(-1)
