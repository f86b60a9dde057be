"""From rows to a batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int = 0) -> dict[str, Tensor]:
    """Return a batch of rows that `prepare` made, padded at the end to the longest.

    Returns:
        `input_ids` int64 `[batch, length]`, `valid` bool `[batch, length]`, which are tokens and not padding, `sample`
        int64 `[batch]`, and what the rows have besides: `document` int64 `[batch, length]` (0 in padding),
        `prompt_length` int64 `[batch]`, and `turns` int64 `[batch, turns, 2]` (0, 0 where there are fewer).
    """
    lengths_B1 = torch.tensor([[len(row["input_ids"])] for row in rows])
    batch = {
        "sample": torch.tensor([row["sample"] for row in rows]),
        "input_ids": _padded([row["input_ids"] for row in rows], pad_token_id),
        "valid": torch.arange(int(lengths_B1.max())) < lengths_B1,
    }
    if "document" in rows[0]:
        batch["document"] = _padded([row["document"] for row in rows], 0)
    if "prompt_length" in rows[0]:
        batch["prompt_length"] = torch.tensor([row["prompt_length"] for row in rows])
        batch["turns"] = _padded([row["turns"] for row in rows], [0, 0])
    return batch


def _padded(rows: Sequence[list[Any]], filling: object) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])
