"""Stand-ins for what this machine cannot run, and a watch over the tensors that are made."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anyorder.attention import BACKENDS
from anyorder.attention.flash import FLASH


def install_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `flash_attn` in plain PyTorch, as its documentation describes it, and a backend that runs it here."""
    module = types.ModuleType("flash_attn")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    able = replace(FLASH, devices=("cpu", "cuda"), backward=("cpu", "cuda"), dtypes=None)
    monkeypatch.setitem(BACKENDS, "flash", able)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """Causal and windows are aligned to the bottom right; -1 is an unbounded window."""
    assert dropout_p == 0.0
    rows, keys, shared = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    ahead = torch.arange(keys) - torch.arange(rows).unsqueeze(1) - (keys - rows)  # key minus row
    left, right = window_size[0], 0 if causal else window_size[1]
    seen = (ahead >= (-left if left >= 0 else -keys - rows)) & (ahead <= (right if right >= 0 else keys + rows))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(shared, 2))
    scores = scores * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.repeat_interleave(shared, 2))


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    """Rows `[rows of all documents, heads, head_dim]`; documents begin at `cu_seqlens`."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    parts = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        one_q, one_k, one_v = (t[start:end].unsqueeze(0) for t in (q, k, v))
        parts.append(flash_attn_func(one_q, one_k, one_v, dropout_p, softmax_scale, causal).squeeze(0))
    return torch.cat(parts)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # An expanded view has the shape of a large tensor but not its memory.
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out
