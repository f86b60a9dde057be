"""Masks as plain boolean tensors, for those who bring an attention of their own."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.utils.annotations import AtMost, checked, shown
from anyorder.visibility import causal, chunks, groups

MOST_GROUPS = 2**20
"""Columns that a target mapping may have; a larger number is no number of a group."""


LONGEST = 2**18
"""Tokens that a mask can be made for: with a byte for each pair, those take 64 GiB."""


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device is {shown(device)}: give one of PyTorch's, such as 'cpu' or 'cuda'.") from error


@checked()
def generate_grouping_masks(
    group_ids: Tensor, seq_len: int | None = None, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Who sees whom in the two streams, and which group each token is predicted with.

    Args:
        group_ids: the rank of each token, whole numbers from 0, `[length]` or `[batch, length]`, in any order.
        seq_len: the length, for callers that state it.
        device: where the masks are wanted; that of `group_ids` unless given.

    Returns:
        The content mask (a token sees its own group and those before), the query mask (only those before), each boolean
        `[..., length, length]`, rows by keys, true where the row sees the key; and the target mapping, boolean
        `[..., length, groups]`, true at the group that the row's token is predicted with. It has a column for each
        group id, but as many as tokens at least.

    Raises:
        UserError: the group ids are no whole numbers from 0 of such a shape, or of another length than `seq_len`.
    """
    if group_ids.dim() not in (1, 2) or group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        found = f"{group_ids.dtype} of shape {list(group_ids.shape)}"
        raise UserError(f"group_ids is {found}: give whole numbers [length] or [batch, length].")
    length = group_ids.shape[-1]
    if seq_len is not None and seq_len != length:
        raise UserError(f"seq_len is {seq_len}, but group_ids has {length} tokens: give as many, or leave it out.")
    lowest, highest = (0, -1) if group_ids.numel() == 0 else map(int, group_ids.aminmax())
    if lowest < 0 or highest >= MOST_GROUPS:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"group_ids has the group {wrong}: number the groups from 0, in the order of writing.")
    rank_BL = group_ids.reshape(-1, length).to(group_ids.device if device is None else _device(device))
    content = {"rank": rank_BL, "stream": torch.zeros_like(rank_BL)}
    query = {"rank": rank_BL, "stream": torch.ones_like(rank_BL)}
    group_G = torch.arange(max(length, highest + 1), device=rank_BL.device)
    masks = groups().mask(content, content), groups().mask(query, content), rank_BL[..., None] == group_G
    content_mask, query_mask, target_mapping = (mask.reshape(*group_ids.shape, mask.shape[-1]) for mask in masks)
    return content_mask, query_mask, target_mapping


@checked()
def create_chunked_attention_mask(
    seq_len: Annotated[int, AtMost(LONGEST)], attention_chunk_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Causal attention within chunks of a fixed size: boolean `[seq_len, seq_len]`, true where a row sees a key.

    Raises:
        UserError: the length is negative, or no such mask fits into memory, or the size of a chunk is not above 0.
    """
    if seq_len < 0:
        raise UserError(f"seq_len is {seq_len}: give the number of tokens, 0 or more.")
    labels = {"position": torch.arange(seq_len, device=None if device is None else _device(device)).unsqueeze(0)}
    return (causal() & chunks(attention_chunk_size)).mask(labels, labels)[0]
