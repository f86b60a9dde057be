"""Masks as plain boolean tensors, for those who bring an attention of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from anyorder.annotations import checked
from anyorder.errors import UserError
from anyorder.visibility import causal, chunks, groups


def generate_grouping_masks(group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Who sees whom in the two streams.

    Args:
        group_ids: the rank of each token, whole numbers `[length]` or `[batch, length]`, in any order.

    Returns:
        The content mask (a token sees its own group and those before) and the query mask (only those before), each
        boolean `[..., length, length]`, rows by keys, true where the row sees the key.

    Raises:
        UserError: the group ids are no whole numbers of such a shape.
    """
    if group_ids.dim() not in (1, 2) or group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        found = f"{group_ids.dtype} of shape {list(group_ids.shape)}"
        raise UserError(f"group_ids is {found}: give whole numbers [length] or [batch, length].")
    rank_BL = group_ids.reshape(-1, group_ids.shape[-1])
    content = {"rank": rank_BL, "stream": torch.zeros_like(rank_BL)}
    query = {"rank": rank_BL, "stream": torch.ones_like(rank_BL)}
    shape = (*group_ids.shape, group_ids.shape[-1])
    return groups().mask(content, content).reshape(shape), groups().mask(query, content).reshape(shape)


@checked()
def create_chunked_attention_mask(
    seq_len: int, attention_chunk_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Causal attention within chunks of a fixed size: boolean `[seq_len, seq_len]`, true where a row sees a key.

    Raises:
        UserError: the size of a chunk is not above 0.
    """
    labels = {"position": torch.arange(seq_len, device=device).unsqueeze(0)}
    return (causal() & chunks(attention_chunk_size)).mask(labels, labels)[0]
