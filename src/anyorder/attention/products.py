"""Attention by two matrix products, for training in bfloat16 on a CPU.

PyTorch's fused kernel has no product in bfloat16 there; the matrix products do. Forwards and backwards at 256 tokens
this takes 0.4 of its time (`benchmarks/objectives.py`), and holds the matrix of scores in memory, so only small ones.

Shape suffixes: B batch, Q query rows, K keys, H heads, G key-value heads, N = H / G, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 2**25
"""Entries of the matrix of scores; beyond, the fused kernel catches up."""


def is_faster(q_BQHD: Tensor, k_BKGD: Tensor) -> bool:
    """Whether this way is the faster one for these rows and keys."""
    if q_BQHD.device.type != "cpu" or not (torch.is_grad_enabled() and q_BQHD.requires_grad):
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BQHD.dtype
    batch, rows, heads, _ = q_BQHD.shape
    return dtype == torch.bfloat16 and batch * rows * heads * k_BKGD.shape[1] <= LARGEST


def attend_by_products(
    q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, seen_or_bias: Tensor | None, causal: bool, scale: float
) -> Tensor:  # fmt: skip
    """`softmax(scale q k + bias) v`, `[batch, rows, heads, head_dim]`, all in bfloat16.

    Args:
        q_BQHD, k_BKGD, v_BKGD: as in `anyorder.attention.attend`.
        seen_or_bias: booleans, true where a row sees a key, or what is added to the scores; `[batch, 1, rows, keys]`
            or broadcastable to it.
        causal: row i sees keys 0 to i.
        scale: factor of the scores.
    """
    groups = k_BKGD.shape[2]
    q_BGNQD = (q_BQHD * scale).bfloat16().unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
    k_BG1DK = k_BKGD.bfloat16().permute(0, 2, 3, 1).unsqueeze(2)
    v_BG1KD = v_BKGD.bfloat16().transpose(1, 2).unsqueeze(2)
    scores_BGNQK = q_BGNQD @ k_BG1DK
    if causal:
        seen_or_bias = torch.ones(scores_BGNQK.shape[-2:], dtype=torch.bool).tril()[None, None]
    if seen_or_bias is not None:
        if seen_or_bias.dtype == torch.bool:  # adding is faster than filling
            seen_or_bias = torch.zeros_like(seen_or_bias, dtype=torch.bfloat16).masked_fill_(~seen_or_bias, -torch.inf)
        scores_BGNQK = scores_BGNQK + seen_or_bias.bfloat16().unsqueeze(1)
    return (scores_BGNQK.softmax(-1, dtype=torch.bfloat16) @ v_BG1KD).permute(0, 3, 1, 2, 4).flatten(2, 3)
