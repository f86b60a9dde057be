"""The flash-attn package, on CUDA: plain kernels only, no mask is ever built.

Shape suffixes: B batch, Q query rows, K keys, H heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anyorder.attention.backends import Backend, Capabilities
from anyorder.attention.hints import kernel_hint, simplified
from anyorder.attention.mask import AttentionMask, Request
from anyorder.errors import UserError


class Flash(Backend):
    """`flash_attn_func`, and `flash_attn_varlen_func` for packed documents."""

    name = "flash"
    can = Capabilities(
        devices=("cuda",),
        backward=("cuda",),
        dtypes=(torch.float16, torch.bfloat16),
        masks=False,
        bias=False,
        lse=False,
        package="flash_attn",
    )

    def compile(self, request: Request) -> AttentionMask:
        plain = simplified(request.visibility, request.query, request.key, request.present, request.valid)
        hint = kernel_hint(plain, request.query, request.key, request.present, request.valid)
        if hint is None:
            raise UserError(
                f"attention 'flash' shows everything, causal, windows or packed documents, not {plain}: "
                "choose 'sdpa' or 'flex'."
            )
        return AttentionMask(self.name, hint=hint)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float) -> Tensor:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        hint = mask.hint
        assert hint is not None
        if hint.kind != "documents":
            window = (-1, -1) if hint.window is None else (hint.window - 1, 0)
            causal = hint.kind != "everything"
            out: Tensor = flash_attn_func(
                q_BQHD, k_BKGD, v_BKGD, softmax_scale=scale, causal=causal, window_size=window
            )
            return out
        assert hint.starts is not None
        longest = int(hint.starts.diff().max())
        flat = (t.flatten(0, 1) for t in (q_BQHD, k_BKGD, v_BKGD))
        out = flash_attn_varlen_func(
            *flat, hint.starts, hint.starts, longest, longest, softmax_scale=scale, causal=hint.causal
        )
        return out.unflatten(0, q_BQHD.shape[:2])
