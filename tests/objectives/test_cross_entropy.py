"""The loss of many rows equals PyTorch's, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anyorder.objectives.cross_entropy import CHUNK, weighted_cross_entropy


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("rows", [0, 1, CHUNK + 3])
def test_equals_pytorchs(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    logits_NV = torch.randn(rows, 19).mul(5).to(dtype).requires_grad_()
    target_N, weight_N = torch.randint(19, (rows,)), torch.rand(rows, dtype=torch.float64)
    loss = weighted_cross_entropy(logits_NV, target_N, weight_N)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    (loss / 7).backward()
    wide_NV = logits_NV.detach().double().requires_grad_()
    expected = (F.cross_entropy(wide_NV, target_N, reduction="none") * weight_N).sum()
    (expected / 7).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=max(tolerance / 100, 1e-12) * 10)
    assert logits_NV.grad is not None
    assert wide_NV.grad is not None
    assert logits_NV.grad.dtype == dtype
    torch.testing.assert_close(logits_NV.grad.double(), wide_NV.grad, rtol=tolerance, atol=tolerance / 10)


def test_large_scores_do_not_overflow() -> None:
    logits_NV = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    loss = weighted_cross_entropy(logits_NV, torch.tensor([0, 0]), torch.ones(2))
    loss.backward()
    assert loss.item() == 1e4
    assert logits_NV.grad is not None
    assert logits_NV.grad.tolist() == [[0, 0], [-1, 1]]
