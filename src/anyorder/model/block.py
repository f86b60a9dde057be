"""One layer: attention and feed-forward, each added to the rows that it read.

Shape suffixes: B batch, R rows, E hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from anyorder.model.cache import LayerCache
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import MixtureOfExperts
from anyorder.model.feed_forward import FeedForward
from anyorder.model.norm import RMSNorm
from anyorder.model.self_attention import attention_class
from anyorder.model.view import View


class Block(nn.Module):
    """`h = x + attention(norm(x))`, then `h + feed_forward(norm(h))`."""

    def __init__(self, config: ModelConfig, kind: LayerKind) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention_class(config)(config, kind)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: FeedForward | MixtureOfExperts
        if kind.experts:
            assert config.experts is not None, "checked by the configuration"
            self.mlp = MixtureOfExperts(config.experts, config.hidden_size)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size, config.mlp_bias)

    def forward(self, rows_BRE: Tensor, view: View, kv: LayerCache | None = None) -> Tensor:
        """Map rows `[batch, rows, hidden]` to those that attend; `kv` is this layer's part of the cache."""
        h_BRE = view.queries_of(rows_BRE) + self.self_attn(self.input_layernorm(rows_BRE), view, kv)
        normed_BRE = self.post_attention_layernorm(h_BRE)
        read = (view.valid, view.block) if isinstance(self.mlp, MixtureOfExperts) else ()
        out_BRE: Tensor = h_BRE + self.mlp(normed_BRE, *read)
        return out_BRE
