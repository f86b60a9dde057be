"""The feed-forward network of a layer.

Shape suffixes: B batch, R rows, E hidden size, F inner size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyorder.model.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, inner_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, inner_size, bias=bias)
        self.up_proj = Linear(hidden_size, inner_size, bias=bias)
        self.down_proj = Linear(inner_size, hidden_size, bias=bias)

    def forward(self, rows_BRE: Tensor) -> Tensor:
        gate_BRF, up_BRF = F.silu(self.gate_proj(rows_BRE)), self.up_proj(rows_BRE)
        # Without gradients in place: on a CPU a second large tensor costs more than the product that it is for.
        gated_BRF = gate_BRF * up_BRF if torch.is_grad_enabled() else gate_BRF.mul_(up_BRF)
        out_BRE: Tensor = self.down_proj(gated_BRF)
        return out_BRE
