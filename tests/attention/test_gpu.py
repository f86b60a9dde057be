"""Kernels of an accelerator: fused paths have given NaN for rows that see nothing, which no CPU can show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anyorder.attention import BiasTerm, Request, attend, compile_mask
from anyorder.visibility import Visibility, before, bidirectional, causal, groups, key_is, sliding_window
from tests.attention.reference import projections

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, which this machine has not"),
]

ROWS = 200


def labels(device: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    rank = torch.randint(0, 20, (2, ROWS), generator=draw)
    columns = {"position": torch.arange(ROWS).expand(2, -1), "rank": rank, "stream": torch.zeros_like(rank)}
    return {name: column.to(device) for name, column in columns.items()}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
@pytest.mark.parametrize(
    "visibility", [causal(), bidirectional(), groups(), before("rank"), causal() & sliding_window(9)], ids=str
)
def test_equals_the_reference_on_a_cpu(
    visibility: Visibility, backend: str, dtype: torch.dtype, biased: bool
) -> None:  # fmt: skip
    present = torch.arange(ROWS) < torch.tensor([[ROWS], [150]])
    inputs = [one.detach().to(dtype) for one in projections(2, ROWS, ROWS, "GQA", head_dim=32)]
    results = []
    for device, name, kind in (("cpu", "eager", torch.float64), ("cuda", backend, dtype)):
        q, k, v = (one.to(device, kind).requires_grad_() for one in inputs)
        bias = (BiasTerm(key_is("stream", 0), 0.5), BiasTerm(before("rank"), -1.0)) if biased else ()
        request = Request(visibility, labels(device), labels(device), present.to(device), bias=bias)
        out = attend(q, k, v, compile_mask(request, name))
        out.square().sum().backward()
        results.append([one.detach().double().cpu() for one in (out, *(leaf.grad for leaf in (q, k, v)))])  # type: ignore[union-attr]
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    for expected, ours in zip(*results, strict=True):
        assert bool(ours.isfinite().all())
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    seen = visibility.mask(labels("cpu"), labels("cpu"), present)
    assert not results[1][0][~seen.any(-1)].any()
