"""Attention of a layer: projections, norms, rotation, cache.

Shape suffixes: B batch, R rows, E hidden size, K keys, H heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

from torch import Tensor, nn

from anyorder.attention import attend
from anyorder.errors import UserError
from anyorder.model.cache import LayerCache
from anyorder.model.config import HEAD_LAYOUTS, LayerKind, ModelConfig
from anyorder.model.linear import Linear
from anyorder.model.norm import RMSNorm, WeightlessRMSNorm
from anyorder.model.rope import rotate
from anyorder.model.view import View
from anyorder.utils.annotations import shown


class SelfAttention(nn.Module):
    """Multi-head attention whose query heads share key-value heads in contiguous groups."""

    def __init__(self, config: ModelConfig, kind: LayerKind) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.qk_norm = config.qk_norm
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm, self.k_norm = head_norm(config, kind, queries), head_norm(config, kind, keys)

    def forward(self, rows_BRE: Tensor, view: View, kv: LayerCache | None) -> Tensor:
        """Map rows `[batch, rows, hidden]` to those that attend; `kv` is this layer's part of the cache."""
        q_BRHD, k_BKGD, v_BKGD = self.projected(rows_BRE, view)
        if kv is not None:
            assert view.slots is not None
            k_BKGD, v_BKGD = kv.update(k_BKGD, v_BKGD, view.slots, view.extent)
        out_BRE: Tensor = self.o_proj(attend(q_BRHD, k_BKGD, v_BKGD, view.mask).flatten(2))
        return out_BRE

    def projected(self, rows_BRE: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the rows that have some, normed and rotated."""
        key_rows_BKE = rows_BRE[:, : view.n_keys]
        q_BRHD = self.normed(self.q_norm, self.q_proj(view.queries_of(rows_BRE)))
        k_BKGD = self.normed(self.k_norm, self.k_proj(key_rows_BKE))
        v_BKGD = self.v_proj(key_rows_BKE).unflatten(-1, (-1, self.head_dim))
        if view.cos_sin is not None:
            cos, sin = view.cos_sin
            q_BRHD = rotate(q_BRHD, view.queries_of(cos), view.queries_of(sin))
            k_BKGD = rotate(k_BKGD, cos[:, : view.n_keys], sin[:, : view.n_keys])
        if self.qk_norm == "weightless":
            q_BRHD, k_BKGD = self.q_norm(q_BRHD), self.k_norm(k_BKGD)
        if view.query_scale is not None:
            q_BRHD = q_BRHD * view.queries_of(view.query_scale)
        return q_BRHD, k_BKGD, v_BKGD

    def normed(self, norm: nn.Module, heads_BRD: Tensor) -> Tensor:
        """From `[batch, rows, heads * head_dim]` to `[batch, rows, heads, head_dim]`, with a learned norm if any."""
        if self.qk_norm == "learned-full-width":
            heads_BRD = norm(heads_BRD)
        split_BRHD = heads_BRD.unflatten(-1, (-1, self.head_dim))
        return norm(split_BRHD) if self.qk_norm == "learned" else split_BRHD


def head_norm(config: ModelConfig, kind: LayerKind, width: int) -> nn.Module:
    """The norm of query or key heads, of this width together: a learned one before the rotation, a weightless after."""
    if config.qk_norm == "learned":
        return RMSNorm(config.head_dim, config.rms_norm_eps)
    if config.qk_norm == "learned-full-width":
        return RMSNorm(width, config.rms_norm_eps)
    rotated = config.rotary_of(kind) is not None
    return WeightlessRMSNorm(config.rms_norm_eps) if config.qk_norm == "weightless" and rotated else nn.Identity()


ATTENTIONS: dict[str, type[nn.Module]] = dict.fromkeys(HEAD_LAYOUTS, SelfAttention)
"""By name; a configuration can name any class that is registered here, built as `SelfAttention` is.

The layouts differ in the number of key-value heads alone.
"""


def attention_class(config: ModelConfig) -> type[nn.Module]:
    """The class that a configuration names.

    Raises:
        UserError: no class of this name is registered.
    """
    name = config.attention or config.head_layout
    if name not in ATTENTIONS:
        raise UserError(
            f"attention is {shown(name)}: choose one of {', '.join(ATTENTIONS)}, or register it in ATTENTIONS."
        )
    return ATTENTIONS[name]
