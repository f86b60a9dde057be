"""Texts of several lengths in one tensor.

Shapes: B texts, R tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(
    fresh: Sequence[Sequence[int]], start: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """A ragged batch as tensors: ids, positions, and which rows are no padding, each [B, R].

    `start` is the position of the first id of each sequence. Padding has id and position 0.
    """
    width = max(len(ids) for ids in fresh)
    missing = [width - len(ids) for ids in fresh]
    ids_BR = [[*ids, *[0] * n] for ids, n in zip(fresh, missing, strict=True)]
    position_BR = [[*range(at, at + width - n), *[0] * n] for at, n in zip(start, missing, strict=True)]
    valid_BR = [[True] * (width - n) + [False] * n for n in missing]
    return (
        torch.tensor(ids_BR, device=device),
        torch.tensor(position_BR, device=device),
        torch.tensor(valid_BR, dtype=torch.bool, device=device),
    )
