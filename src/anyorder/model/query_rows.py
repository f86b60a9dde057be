"""Query rows: each has the position of a token that is to be predicted, and nothing of that token.

Shape suffixes: B batch, K query rows, E hidden size, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyorder.model.linear import Linear

FEATURES = 128
"""Sines and cosines of a position."""

SLOWEST = 10_000.0
"""Positions per radian of the slowest of them (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""


class QueryRows(nn.Module):
    """Embeddings of query rows (XLNet, Yang et al. 2019, arXiv 1906.08237): a learned start vector, and the position.

    XLNet's rows all start from one vector. Rotary embeddings enter through scores alone, so a row that sees no key, or
    one, would predict the same at every position; a learned projection of sinusoidal features of the position makes
    such rows differ.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.start = nn.Embedding(1, hidden_size)  # no bare parameter, so that it is drawn as embeddings are
        self.position = Linear(FEATURES, hidden_size, bias=False)

    def forward(self, position_BK: Tensor) -> Tensor:
        """Rows `[batch, query rows, hidden]` for the positions `[batch, query rows]` of the tokens to be predicted."""
        start_E = self.start.weight[0]
        rows_BKE: Tensor = start_E + self.position(features(position_BK).to(start_E.dtype))
        return rows_BKE


def features(position_BK: Tensor) -> Tensor:
    """Sines and cosines of the positions, in float64, `[..., FEATURES]`."""
    step_F = torch.arange(FEATURES // 2, dtype=torch.float64, device=position_BK.device) / (FEATURES // 2)
    angle_BKF = position_BK.double().unsqueeze(-1) * SLOWEST**-step_F
    return torch.cat((angle_BKF.sin(), angle_BKF.cos()), -1)
