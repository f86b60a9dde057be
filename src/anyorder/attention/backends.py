"""What a backend of attention declares of itself, and those that work with a mask of rows by keys.

Query head h reads key-value head `h // (heads / kv_heads)`.

Shape suffixes: B batch, Q query rows, K keys, H heads, G key-value heads, N = H / G, D head dimension.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.attention import products
from anyorder.attention.hints import kernel_hint, simplify
from anyorder.attention.mask import AttentionMask, Request, dense_bias, dense_mask
from anyorder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute attention.

    Attributes:
        name: what users choose it by.
        compile: makes the mask of one forward pass.
        devices: device types that it runs on.
        backward: device types on which it has a backward pass.
        dtypes: data types that it takes; None: every floating-point type.
        bias: whether it can add a bias to the scores.
        lse: whether some keys can have a softmax of their own, which the reference computes.
        package: the optional package that it needs.
    """

    name: str
    compile: Callable[[Request], AttentionMask]
    devices: tuple[str, ...] = ("cpu", "cuda")
    backward: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] | None = None
    bias: bool = True
    lse: bool = True
    package: str | None = None

    def refuse_unless_able(self, device: torch.device, dtype: torch.dtype | None, backward: bool) -> None:
        """Raise a `UserError` that names the remedy unless the backend can run there."""
        other = "choose 'sdpa' or 'auto'"
        if device.type not in self.devices:
            places = " or ".join(self.devices)
            raise UserError(f"attention {self.name!r} runs on {places}, not on {device.type}: {other}.")
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise UserError(f"attention {self.name!r} needs the package {self.package}: install it, or {other}.")
        if dtype is not None and self.dtypes is not None and dtype not in self.dtypes:
            taken = " or ".join(str(dtype) for dtype in self.dtypes)
            raise UserError(f"attention {self.name!r} takes {taken}, not {dtype}: convert the model, or {other}.")
        if backward and device.type not in self.backward:
            raise UserError(
                f"attention {self.name!r} has no backward pass on {device.type}: use torch.no_grad(), or {other}."
            )


@dataclass(frozen=True, kw_only=True)
class EagerMask(AttentionMask):
    """The reference: every step written out, the whole matrix of scores in memory.

    Attributes:
        seen_B1QK: visible pairs, boolean, broadcastable to `[batch, 1, rows, keys]`; see `dense_mask`.
        bias_B1QK: added to the scores, float64, broadcastable likewise; None: nothing is added.
        watch: callback, called with the weights `[batch, heads, rows, keys]` of each call.
    """

    seen_B1QK: Tensor
    bias_B1QK: Tensor | None = None
    watch: Callable[[Tensor], object] | None = None

    @classmethod
    def of(cls, request: Request) -> EagerMask:
        """Compile a request."""
        seen_B1QK, empty_BQ = dense_mask(request)
        return cls(seen_B1QK=seen_B1QK, bias_B1QK=dense_bias(request), empty_BQ=empty_BQ)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        weights_BHQK = self._scores(q_BQHD, k_BKGD, scale).softmax(-1).flatten(1, 2)
        if self.watch is not None:
            empty_BQ = self.empty_BQ
            self.watch(weights_BHQK if empty_BQ is None else weights_BHQK.masked_fill(empty_BQ[:, None, :, None], 0))
        return self._weigh(weights_BHQK, v_BKGD)

    def attend_with_lse(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The same, and the log-sum-exp of each row's scores, `[batch, rows, heads]`."""
        scores_BGNQK = self._scores(q_BQHD, k_BKGD, scale)
        out_BQHD = self._weigh(scores_BGNQK.softmax(-1).flatten(1, 2), v_BKGD)
        return out_BQHD, scores_BGNQK.logsumexp(-1).permute(0, 3, 1, 2).flatten(2)

    def _scores(self, q_BQHD: Tensor, k_BKGD: Tensor, scale: float) -> Tensor:
        q_BGNQD = q_BQHD.unflatten(2, (k_BKGD.shape[2], -1)).permute(0, 2, 3, 1, 4)
        k_BG1DK = k_BKGD.permute(0, 2, 3, 1).unsqueeze(2)
        scores_BGNQK = (q_BGNQD @ k_BG1DK * scale).to(torch.promote_types(q_BQHD.dtype, torch.float32))
        if self.bias_B1QK is not None:
            scores_BGNQK = scores_BGNQK + self.bias_B1QK.unsqueeze(1).to(scores_BGNQK.dtype)
        return scores_BGNQK.masked_fill(~self.seen_B1QK.unsqueeze(1), -torch.inf)

    def _weigh(self, weights_BHQK: Tensor, v_BKGD: Tensor) -> Tensor:
        v_BG1KD = v_BKGD.transpose(1, 2).unsqueeze(2)
        weights_BGNQK = weights_BHQK.to(v_BKGD.dtype).unflatten(1, (v_BKGD.shape[2], -1))
        return (weights_BGNQK @ v_BG1KD).permute(0, 3, 1, 2, 4).flatten(2, 3)


@dataclass(frozen=True, kw_only=True)
class SDPAMask(AttentionMask):
    """PyTorch's `scaled_dot_product_attention`: no tensor where a plain kernel does, a boolean one elsewhere.

    Attributes:
        seen_or_bias_B1QK: visible pairs, boolean, or a bias in float64 that is minus infinity where a pair is hidden,
            broadcastable to `[batch, 1, rows, keys]`; None: a plain kernel is enough.
        causal: row i sees keys 0 to i.
    """

    seen_or_bias_B1QK: Tensor | None = None
    causal: bool = False

    @classmethod
    def of(cls, request: Request) -> SDPAMask:
        """Compile a request."""
        plain, bias_B1QK = simplify(request), dense_bias(request)
        hint = kernel_hint(plain) if bias_B1QK is None else None
        if hint is not None and hint.kind in ("everything", "causal"):
            return cls(causal=hint.kind == "causal")
        seen_B1QK, empty_BQ = dense_mask(plain)
        if bias_B1QK is not None:
            return cls(seen_or_bias_B1QK=torch.where(seen_B1QK, bias_B1QK, -torch.inf), empty_BQ=empty_BQ)
        return cls(seen_or_bias_B1QK=seen_B1QK, empty_BQ=empty_BQ)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        seen_or_bias = self.seen_or_bias_B1QK
        if seen_or_bias is not None and seen_or_bias.dtype != torch.bool:
            seen_or_bias = seen_or_bias.to(q_BQHD.dtype)
        if products.is_faster(q_BQHD, k_BKGD):
            return products.attend_by_products(q_BQHD, k_BKGD, v_BKGD, seen_or_bias, self.causal, scale)
        out_BHQD = F.scaled_dot_product_attention(
            q_BQHD.transpose(1, 2),
            k_BKGD.transpose(1, 2),
            v_BKGD.transpose(1, 2),
            attn_mask=seen_or_bias,
            is_causal=self.causal,
            scale=scale,
            enable_gqa=q_BQHD.shape[2] != k_BKGD.shape[2],
        )
        return out_BHQD.transpose(1, 2)


class TracedMask(EagerMask):
    """The reference without a decision that depends on data, for steps that are compiled as a whole.

    A single row of queries is written as multiply and add, which the compiler fuses into one loop over
    the keys; shared key-value heads are read once and never copied.
    """

    @classmethod
    def of(cls, request: Request) -> TracedMask:
        """Compile a request."""
        seen_BQK = request.visibility.mask(request.query, request.key, request.present)
        empty_BQ = ~seen_BQK.any(-1)
        opened_B1QK = (seen_BQK | empty_BQ.unsqueeze(-1)).unsqueeze(1)
        return cls(seen_B1QK=opened_B1QK, bias_B1QK=dense_bias(request), empty_BQ=empty_BQ)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        if q_BQHD.shape[1] != 1:
            return super().attend(q_BQHD, k_BKGD, v_BKGD, scale)
        q_BGN1D = q_BQHD[:, 0].unflatten(1, (k_BKGD.shape[2], -1)).unsqueeze(3)
        k_BG1KD, v_BG1KD = k_BKGD.transpose(1, 2).unsqueeze(2), v_BKGD.transpose(1, 2).unsqueeze(2)
        scores_BGNK = (q_BGN1D * k_BG1KD).to(torch.promote_types(q_BQHD.dtype, torch.float32)).sum(-1) * scale
        if self.bias_B1QK is not None:
            scores_BGNK = scores_BGNK + self.bias_B1QK.to(scores_BGNK.dtype)
        weights_BGNK = scores_BGNK.masked_fill(~self.seen_B1QK, -torch.inf).softmax(-1).to(v_BKGD.dtype)
        return (weights_BGNK.unsqueeze(-1) * v_BG1KD).sum(3).flatten(1, 2).unsqueeze(1)


EAGER = Backend(name="eager", compile=EagerMask.of)
SDPA = Backend(name="sdpa", compile=SDPAMask.of)
TRACED = Backend(name="traced", compile=TracedMask.of)
