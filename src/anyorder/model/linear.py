"""The projection of all layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`x weight^T + bias`, written for the compiler where a single row is projected on a CPU.

    A product of a matrix and one row only reads the matrix. PyTorch's libraries do that at half the
    speed of memory, and in bfloat16 at a quarter; written as multiply and add, TorchInductor
    makes loops of it that run at nearly full speed and that it fuses with its neighbours
    (benchmarks/matvec.py).
    """

    def forward(self, x: Tensor) -> Tensor:
        return one_row(x, self.weight, self.bias) if is_one_row(x) else super().forward(x)


def is_one_row(x: Tensor) -> bool:
    """Whether `x` is a single row in code that is being compiled for a CPU."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and math.prod(x.shape[:-1]) == 1


def one_row(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """The projection of one row `[1, ..., I]` to `[1, ..., O]`, summed in float32 or wider."""
    wide_I = x.flatten().to(torch.promote_types(x.dtype, torch.float32))
    out_O = (weight_OI * wide_I).sum(-1).to(x.dtype)
    return (out_O if bias_O is None else out_O + bias_O).view(*x.shape[:-1], -1)
