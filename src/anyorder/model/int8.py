"""Weights of projections as 8-bit integers, for less memory and less to read for each token.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyorder.model.linear import Linear, is_one_row, one_row
from anyorder.model.llama import Llama


class Int8Linear(nn.Module):
    """A projection whose weight is `scale_O * weight_OI`, rounded to the nearest; rows keep their precision.

    Symmetric, one scale an output ("absmax"): the largest weight of each output becomes 127.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        wide_OI = linear.weight.detach().float()
        scale_O = (wide_OI.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.weight: Tensor
        self.scale: Tensor
        self.bias = linear.bias
        self.register_buffer("weight", (wide_OI / scale_O.unsqueeze(1)).round().to(torch.int8))
        self.register_buffer("scale", scale_O.to(linear.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        out = one_row(x, self.weight, None) if is_one_row(x) else F.linear(x, self.weight.to(x.dtype))
        return out * self.scale if self.bias is None else out * self.scale + self.bias


def to_int8(model: Llama) -> Llama:
    """Replace the projections of a network, head included, in place, and return it; for writing, not for training.

    Embeddings and norms stay as they are.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, Int8Linear(child))
    return model
