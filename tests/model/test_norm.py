"""The norm is computed in float32 or wider, whatever it is given."""

from __future__ import annotations

import pytest
import torch

from anyorder.model.norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_its_formula(dtype: torch.dtype) -> None:
    norm = RMSNorm(6, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 6).to(dtype) * 100
    wide = x.double()
    expected = norm.weight.double() * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    out = norm(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_float16_does_not_overflow() -> None:
    """300 squared is beyond float16."""
    assert bool(RMSNorm(4, eps=1e-5).half()(torch.full((1, 4), 300.0).half()).isfinite().all())


def test_zeros_stay_zeros() -> None:
    assert torch.equal(RMSNorm(4, eps=1e-5)(torch.zeros(1, 4)), torch.zeros(1, 4))
