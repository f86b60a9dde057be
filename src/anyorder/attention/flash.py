"""The flash-attn package, on CUDA: plain kernels only, no tensor of rows by keys is ever built.

Shape suffixes: B batch, Q query rows, K keys, H heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.attention.backends import Backend
from anyorder.attention.hints import Hint, kernel_hint, simplify
from anyorder.attention.mask import AttentionMask, Request
from anyorder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FlashMask(AttentionMask):
    """`flash_attn_func`, and `flash_attn_varlen_func` for packed documents."""

    hint: Hint

    @classmethod
    def of(cls, request: Request) -> FlashMask:
        """Compile a request.

        Raises:
            UserError: no plain kernel does the same.
        """
        plain = simplify(request)
        hint = kernel_hint(plain)
        if hint is None:
            raise UserError(
                "attention 'flash' shows everything, causal, windows or packed documents, not "
                f"{plain.visibility}: choose 'sdpa' or 'flex'."
            )
        return cls(hint=hint)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        hint = self.hint
        if hint.starts is None:
            window = (-1, -1) if hint.window is None else (hint.window - 1, 0)
            causal = hint.kind != "everything"
            out: Tensor = flash_attn_func(
                q_BQHD, k_BKGD, v_BKGD, softmax_scale=scale, causal=causal, window_size=window
            )
            return out
        longest = int(hint.starts.diff().max())
        flat = (t.flatten(0, 1) for t in (q_BQHD, k_BKGD, v_BKGD))
        out = flash_attn_varlen_func(
            *flat, hint.starts, hint.starts, longest, longest, softmax_scale=scale, causal=hint.causal
        )
        return out.unflatten(0, q_BQHD.shape[:2])


FLASH = Backend(
    name="flash", compile=FlashMask.of, devices=("cuda",), backward=("cuda",), dtypes=(torch.float16, torch.bfloat16),
    bias=False, lse=False, package="flash_attn",
)  # fmt: skip
