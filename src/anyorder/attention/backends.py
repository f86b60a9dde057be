"""The backends of attention: what each can do, and how it does it.

All take queries `[batch, rows, heads, head_dim]`, keys and values `[batch, keys, kv_heads, head_dim]`
and an `AttentionMask` that they made themselves. Query head h reads key-value head
`h // (heads / kv_heads)`. A row that sees nothing gives zeros.

Shape suffixes: B batch, Q query rows, K keys, H heads, G key-value heads, N = H / G, D head dimension.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.attention import products
from anyorder.attention.hints import kernel_hint, simplified
from anyorder.attention.mask import AttentionMask, Request, dense_bias, dense_mask
from anyorder.errors import UserError


@dataclass(frozen=True)
class Capabilities:
    """What a backend declares of itself.

    Attributes:
        devices: device types that it runs on.
        backward: device types on which it has a backward pass.
        dtypes: data types that it takes; None: every floating-point type.
        masks: whether it can show any visibility; otherwise only those with a `Hint`.
        bias: whether it can add a bias to the scores.
        lse: whether parts of the keys can have a softmax of their own, which the reference computes.
        package: the optional package that it needs.
    """

    devices: tuple[str, ...] = ("cpu", "cuda")
    backward: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] | None = None
    masks: bool = True
    bias: bool = True
    lse: bool = True
    package: str | None = None


class Backend(ABC):
    """One way to compute attention."""

    name: ClassVar[str]
    can: ClassVar[Capabilities] = Capabilities()

    def refuse_unless_able(self, device: torch.device, dtype: torch.dtype | None, backward: bool) -> None:
        """Raise a `UserError` that names the remedy unless the backend can run there."""
        other = "choose 'sdpa' or 'auto'"
        if device.type not in self.can.devices:
            places = " or ".join(self.can.devices)
            raise UserError(f"attention {self.name!r} runs on {places}, not on {device.type}: {other}.")
        if self.can.package is not None and importlib.util.find_spec(self.can.package) is None:
            raise UserError(f"attention {self.name!r} needs the package {self.can.package}: install it, or {other}.")
        if dtype is not None and self.can.dtypes is not None and dtype not in self.can.dtypes:
            taken = " or ".join(str(dtype) for dtype in self.can.dtypes)
            raise UserError(f"attention {self.name!r} takes {taken}, not {dtype}: convert the model, or {other}.")
        if backward and device.type not in self.can.backward:
            raise UserError(
                f"attention {self.name!r} has no backward pass on {device.type}: use torch.no_grad(), or {other}."
            )

    @abstractmethod
    def compile(self, request: Request) -> AttentionMask:
        """Make the mask of one forward pass."""

    @abstractmethod
    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float) -> Tensor:
        """`softmax(scale q k + bias) v` over the visible keys: `[batch, rows, heads, head_dim]`."""


class Eager(Backend):
    """The reference: every step written out, the whole matrix of scores in memory."""

    name = "eager"

    def compile(self, request: Request) -> AttentionMask:
        seen_B1QK, empty_BQ = dense_mask(request, request.visibility)
        return AttentionMask(self.name, seen_B1QK=seen_B1QK, bias_B1QK=dense_bias(request), empty_BQ=empty_BQ)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float) -> Tensor:
        weights_BHQK = self._scores(q_BQHD, k_BKGD, mask, scale).softmax(-1).flatten(1, 2)
        if mask.empty_BQ is not None:
            weights_BHQK = weights_BHQK.masked_fill(mask.empty_BQ[:, None, :, None], 0)
        if mask.watch is not None:
            mask.watch(weights_BHQK)
        return self._weigh(weights_BHQK, v_BKGD)

    def attend_with_lse(
        self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """The same, and the log-sum-exp of each row's scores, `[batch, rows, heads]`."""
        scores_BGNQK = self._scores(q_BQHD, k_BKGD, mask, scale)
        weights_BHQK = scores_BGNQK.softmax(-1).flatten(1, 2)
        return self._weigh(weights_BHQK, v_BKGD), scores_BGNQK.logsumexp(-1).permute(0, 3, 1, 2).flatten(2)

    def _scores(self, q_BQHD: Tensor, k_BKGD: Tensor, mask: AttentionMask, scale: float) -> Tensor:
        groups = k_BKGD.shape[2]
        q_BGNQD = q_BQHD.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
        k_BG1DK = k_BKGD.permute(0, 2, 3, 1).unsqueeze(2)
        scores_BGNQK = q_BGNQD @ k_BG1DK * scale
        scores_BGNQK = scores_BGNQK.to(torch.promote_types(q_BQHD.dtype, torch.float32))
        if mask.bias_B1QK is not None:
            scores_BGNQK = scores_BGNQK + mask.bias_B1QK.unsqueeze(1).to(scores_BGNQK.dtype)
        if mask.seen_B1QK is not None:
            scores_BGNQK = scores_BGNQK.masked_fill(~mask.seen_B1QK.unsqueeze(1), -torch.inf)
        return scores_BGNQK

    def _weigh(self, weights_BHQK: Tensor, v_BKGD: Tensor) -> Tensor:
        v_BG1KD = v_BKGD.transpose(1, 2).unsqueeze(2)
        weights_BGNQK = weights_BHQK.to(v_BKGD.dtype).unflatten(1, (v_BKGD.shape[2], -1))
        return (weights_BGNQK @ v_BG1KD).permute(0, 3, 1, 2, 4).flatten(2, 3)


class SDPA(Backend):
    """PyTorch's `scaled_dot_product_attention`: no mask where a plain kernel does, a boolean one elsewhere."""

    name = "sdpa"

    def compile(self, request: Request) -> AttentionMask:
        plain = simplified(request.visibility, request.query, request.key, request.present, request.valid)
        bias_B1QK = dense_bias(request)
        if bias_B1QK is None:
            hint = kernel_hint(plain, request.query, request.key, request.present, request.valid)
            if hint is not None and hint.kind in ("everything", "causal"):
                return AttentionMask(self.name, hint=hint)
        seen_B1QK, empty_BQ = dense_mask(request, plain)
        return AttentionMask(self.name, seen_B1QK=seen_B1QK, bias_B1QK=bias_B1QK, empty_BQ=empty_BQ)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float) -> Tensor:
        seen_or_bias = mask.seen_B1QK
        if mask.bias_B1QK is not None:
            assert mask.seen_B1QK is not None
            bias_B1QK = mask.bias_B1QK.to(q_BQHD.dtype)
            seen_or_bias = torch.where(mask.seen_B1QK, bias_B1QK, -torch.inf)
        causal = mask.hint is not None and mask.hint.kind == "causal"
        if products.is_faster(q_BQHD, k_BKGD):
            return products.attend_by_products(q_BQHD, k_BKGD, v_BKGD, seen_or_bias, causal, scale)
        out_BHQD = F.scaled_dot_product_attention(
            q_BQHD.transpose(1, 2),
            k_BKGD.transpose(1, 2),
            v_BKGD.transpose(1, 2),
            attn_mask=seen_or_bias,
            is_causal=causal,
            scale=scale,
            enable_gqa=q_BQHD.shape[2] != k_BKGD.shape[2],
        )
        return out_BHQD.transpose(1, 2)


class Traced(Eager):
    """The reference without a decision that depends on data, for steps that are compiled as a whole.

    A single row of queries is spelled as multiply and add, which the compiler fuses into one loop over
    the keys; shared key-value heads are read once and never copied.
    """

    name = "traced"

    def compile(self, request: Request) -> AttentionMask:
        seen_BQK = request.visibility.mask(request.query, request.key, request.present)
        empty_BQ = ~seen_BQK.any(-1)
        opened_B1QK = (seen_BQK | empty_BQ.unsqueeze(-1)).unsqueeze(1)
        return AttentionMask(self.name, seen_B1QK=opened_B1QK, bias_B1QK=dense_bias(request), empty_BQ=empty_BQ)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float) -> Tensor:
        if q_BQHD.shape[1] != 1:
            return super().attend(q_BQHD, k_BKGD, v_BKGD, mask, scale)
        assert mask.seen_B1QK is not None
        q_BGN1D = q_BQHD[:, 0].unflatten(1, (k_BKGD.shape[2], -1)).unsqueeze(3)
        k_BG1KD, v_BG1KD = k_BKGD.transpose(1, 2).unsqueeze(2), v_BKGD.transpose(1, 2).unsqueeze(2)
        scores_BGNK = (q_BGN1D * k_BG1KD).to(torch.promote_types(q_BQHD.dtype, torch.float32)).sum(-1) * scale
        if mask.bias_B1QK is not None:
            scores_BGNK = scores_BGNK + mask.bias_B1QK.to(scores_BGNK.dtype)
        weights_BGNK = scores_BGNK.masked_fill(~mask.seen_B1QK, -torch.inf).softmax(-1).to(v_BKGD.dtype)
        return (weights_BGNK.unsqueeze(-1) * v_BG1KD).sum(3).flatten(1, 2).unsqueeze(1)
