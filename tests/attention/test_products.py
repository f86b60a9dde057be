"""Attention by products in bfloat16: used where it pays, and equal to the reference within bfloat16's rounding."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from anyorder.attention import Request, attend, compile_mask, products
from anyorder.visibility import Visibility, bidirectional, causal, groups

VISIBILITIES = {"causal": causal(), "everything": bidirectional(), "masked": groups()}


def run(visibility: Visibility, backend: str, inputs: list[Tensor], present: Tensor | None) -> list[Tensor]:
    """Output and gradients, float32, for two samples of 40 rows whose first sees nothing under `groups`."""
    rank = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    labels = {"position": torch.arange(40).expand(2, 40), "rank": rank, "stream": torch.ones_like(rank)}
    keys = {**labels, "stream": torch.zeros_like(rank)}
    leaves = [one.clone().requires_grad_() for one in inputs]
    q, k, v = leaves
    out = attend(q, k, v, compile_mask(Request(visibility, labels, keys, present), backend))
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out.float(), *(grad.float() for grad in torch.autograd.grad((out.float() * weight).sum(), leaves))]


@pytest.mark.parametrize("name", VISIBILITIES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_reference(name: str, kv_heads: int, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((2, 40, 4, 16), (2, 40, kv_heads, 16), (2, 40, kv_heads, 16))
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    present = torch.ones(2, 40, dtype=torch.bool)
    if padded:
        present[1, 30:] = False
    watched = Mock(wraps=products.attend_by_products)
    monkeypatch.setattr(products, "attend_by_products", watched)
    fast = run(VISIBILITIES[name], "sdpa", inputs, present)
    assert watched.call_count == 1
    reference = run(VISIBILITIES[name], "eager", [one.float() for one in inputs], present)
    for ours, theirs in zip(fast, reference, strict=True):
        assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()


def test_it_is_for_training_in_bfloat16_alone() -> None:
    q = torch.randn(1, 4, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    assert products.is_faster(q, q)
    assert not products.is_faster(q.float(), q.float())
    assert not products.is_faster(q.detach(), q)
    with torch.no_grad():
        assert not products.is_faster(q, q)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.is_faster(q.float(), q.float())
    long = torch.empty(1, 2**13, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    assert not products.is_faster(long, long)
