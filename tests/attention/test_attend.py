"""Every backend that runs here equals a plain loop, forwards and backwards."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.attention import BACKENDS, BiasTerm, Request, attend, compile_mask
from anyorder.attention.backends import EagerMask, SDPAMask
from anyorder.attention.mask import AttentionMask
from anyorder.errors import UserError
from anyorder.visibility import Visibility, before, bidirectional, causal, groups, key_is, same, sliding_window
from tests.attention.reference import HEADS, Case, cases, loop_attention, projections

MASKING = [name for name, backend in BACKENDS.items() if "cpu" in backend.backward]
"""Backends that show any visibility on a CPU with a backward pass; flex and flash have files of their own."""


def labels(**columns: list[list[int]]) -> dict[str, Tensor]:
    return {name: torch.tensor(rows) for name, rows in columns.items()}


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(inputs, grads, strict=True)]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("backend", MASKING)
@given(case=cases())
@settings(max_examples=30, deadline=None)
def test_equals_a_loop(backend: str, kind: str, case: Case) -> None:
    batch, rows = case.request.query["position"].shape
    inputs = projections(batch, rows, case.request.key["position"].shape[1], kind)
    out = attend(*inputs, compile_mask(case.request, backend))
    expected = loop_attention(*inputs, case.seen, case.bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    if out.requires_grad and expected.requires_grad:
        torch.testing.assert_close(gradients(out, inputs), gradients(expected, inputs), rtol=0, atol=1e-12)


@given(case=cases(), data=st.data())
@settings(max_examples=30, deadline=None)
def test_rows_that_are_not_wanted_change_nothing(case: Case, data: st.DataObject) -> None:
    """`valid` may buy a plain kernel; the wanted rows stay as they are, and the others stay finite."""
    shape = case.request.query["position"].shape
    valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=shape.numel(), max_size=shape.numel())))
    valid = valid.view(shape).bool()
    given_valid = replace(case.request, valid=valid)
    inputs = projections(shape[0], shape[1], case.request.key["position"].shape[1], "GQA")
    expected = attend(*inputs, compile_mask(case.request, "eager"))
    for backend in MASKING:
        out = attend(*inputs, compile_mask(given_valid, backend))
        torch.testing.assert_close(out[valid], expected[valid], rtol=0, atol=1e-12)
        assert bool(out.isfinite().all())


@pytest.mark.parametrize("backend", MASKING)
@pytest.mark.parametrize("zero_keys", [False, True])
def test_a_row_that_sees_nothing_is_exactly_zero(backend: str, zero_keys: bool) -> None:
    rows = labels(position=[[0, 1, 2, 3]], rank=[[0, 0, 1, 2]])
    q, k, v = projections(1, 4, 4, "GQA")
    if zero_keys:
        with torch.no_grad():
            k.zero_()
    out = attend(q, k, v, compile_mask(Request(before("rank"), rows, rows), backend))
    assert torch.equal(out[0, :2], torch.zeros_like(out[0, :2]))
    assert bool((out[0, 2:] != 0).any(-1).all())
    dq, dk, dv = gradients(out, (q, k, v))
    assert bool(torch.isfinite(torch.cat([one.flatten() for one in (dq, dk, dv)])).all())
    assert not dq[0, :2].any()
    assert not dv[0, 3].any()  # rank 2 is seen by nobody
    assert bool(dv[0, :3].any(-1).all())


@pytest.mark.parametrize("backend", MASKING)
def test_empty_rows_differ_between_samples(backend: str) -> None:
    rows = labels(position=[[0, 1], [0, 1]])
    present = torch.tensor([[False, True], [False, False]])
    q, k, v = projections(2, 2, 2, "MHA")
    out = attend(q, k, v, compile_mask(Request(causal(), rows, rows, present), backend))
    assert not out[0, 0].any()
    torch.testing.assert_close(out[0, 1], v[0, 1])
    assert not out[1].any()
    assert all(bool(grad.isfinite().all()) for grad in gradients(out, (q, k, v)))


@pytest.mark.parametrize("backend", MASKING)
@pytest.mark.parametrize(("rows", "keys"), [(3, 0), (0, 3), (0, 0)])
def test_no_rows_or_no_keys(backend: str, rows: int, keys: int) -> None:
    """Nothing to see, or nobody to look: zeros, and not a kernel is called."""
    q, k, v = projections(2, rows, keys, "GQA")
    query, key = ({"position": torch.zeros(2, size, dtype=torch.int64)} for size in (rows, keys))
    out = attend(q, k, v, compile_mask(Request(causal(), query, key), backend))
    assert torch.equal(out, torch.zeros(2, rows, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("backend", MASKING)
def test_bias_of_a_segment(backend: str) -> None:
    """log w on every key of a segment multiplies its weights by w before they are normalised."""
    key = labels(position=[[0, 1, 2], [0, 1, 2]], segment=[[0, 0, 1], [0, 0, 1]])
    query = labels(position=[[5], [5]], segment=[[2], [2]])
    weight = torch.tensor([3.0, 0.5], dtype=torch.float64)
    terms = (BiasTerm(key_is("segment", 1), weight.log()),)
    q, k, v = projections(2, 1, 3, "MHA")
    out = attend(q, k, v, compile_mask(Request(causal(), query, key, bias=terms), backend))
    for b in range(2):
        score = (q[b, 0].unsqueeze(0) * k[b]).sum(-1).mul(0.5).exp() * torch.tensor([1, 1, float(weight[b])]).unsqueeze(
            1
        )
        torch.testing.assert_close(out[b, 0], (score.unsqueeze(-1) * v[b]).sum(0) / score.sum(0).unsqueeze(-1))


@pytest.mark.parametrize("backend", MASKING)
def test_bias_leaves_empty_rows_zero_and_has_a_gradient(backend: str) -> None:
    rows = labels(position=[[0, 1, 2]], rank=[[0, 1, 2]])
    value = torch.tensor([0.7], requires_grad=True)
    mask = compile_mask(Request(before("rank"), rows, rows, bias=(BiasTerm(same("rank", shift=1), value),)), backend)
    out = attend(*projections(1, 3, 3, "MHA"), mask)
    assert not out[0, 0].any()
    (grad,) = torch.autograd.grad(out.square().sum(), value)
    assert bool(grad.isfinite().all())
    assert bool(grad.any())


def test_labels_of_a_bias_are_needed_too() -> None:
    rows = labels(position=[[0, 1, 2]])
    with pytest.raises(UserError, match=r"carry the labels \['position'\], but key.segment == 1 reads 'segment'"):
        compile_mask(Request(causal(), rows, rows, bias=(BiasTerm(key_is("segment", 1), 1.0),)), "sdpa")


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), torch.tensor([0.0, float("-inf")])])
def test_a_bias_is_finite(value: float | Tensor) -> None:
    """The logarithm of a weight 0 would make NaN of a row that sees nothing else."""
    with pytest.raises(UserError) as error:
        BiasTerm(key_is("segment", 1), value)
    assert str(error.value) == (
        f"the bias on key.segment == 1 is {value}: give finite numbers, and hide keys by visibility."
    )


@pytest.mark.parametrize("backend", MASKING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_stays_near(backend: str, dtype: torch.dtype) -> None:
    rows = labels(position=[list(range(9))], rank=[[0, 3, 3, 1, 2, 2, 5, 4, 0]], stream=[[0] * 9])
    request = Request(groups(), rows, rows, bias=(BiasTerm(key_is("rank", 2), 0.3),))
    inputs = projections(1, 9, 9, "GQA", head_dim=8)
    expected = attend(*inputs, compile_mask(request, "eager"))
    q, k, v = (one.to(dtype) for one in inputs)
    narrow = attend(q, k, v, compile_mask(request, backend))
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", MASKING)
def test_scale(backend: str) -> None:
    rows = labels(position=[[0, 1, 2]])
    q, k, v = projections(1, 3, 3, "MHA")
    mask = compile_mask(Request(causal(), rows, rows), backend)
    torch.testing.assert_close(attend(q, k, v, mask, scale=1.0), attend(q * 2, k, v, mask))


# ---- what is built ---------------------------------------------------------------------------------


def seen_of(mask: AttentionMask) -> Tensor:
    """The tensor of visible pairs."""
    seen = mask.seen_or_bias_B1QK if isinstance(mask, SDPAMask) else cast("EagerMask", mask).seen_B1QK
    assert seen is not None
    return seen


@pytest.mark.parametrize(
    ("visibility", "is_causal"),
    [(causal(), True), (bidirectional(), False), (sliding_window(8) & causal(), True)],
    ids=str,
)
def test_sdpa_builds_no_mask_where_a_plain_kernel_does(visibility: Visibility, is_causal: bool) -> None:
    rows = labels(position=[[0, 1, 2, 3]])
    assert compile_mask(Request(visibility, rows, rows), "sdpa") == SDPAMask(causal=is_causal)


def test_sdpa_builds_a_row_of_flags_for_a_ragged_decoding_step() -> None:
    """All that is present is seen: `[batch, 1, 1, keys]`, not rows x keys."""
    key = labels(position=[[0, 1, 2, 3], [0, 1, 0, 0]])
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    mask = compile_mask(Request(causal(), labels(position=[[4], [2]]), key, present), "sdpa")
    assert seen_of(mask).shape == (2, 1, 1, 4)


def test_a_sample_without_keys_is_empty_for_no_kernel() -> None:
    """Beside one with keys, under "everything": the case in which a row of flags is all the mask there is."""
    rows = labels(position=[[0, 1], [0, 1]])
    present = torch.tensor([[True, True], [False, False]])
    for backend in MASKING:
        mask = compile_mask(Request(bidirectional(), rows, rows, present), backend)
        assert bool(seen_of(mask).any(-1).all())
        out = attend(*projections(2, 2, 2, "MHA"), mask)
        assert bool(out[0].any())
        assert not out[1].any()


def test_no_row_is_empty_for_the_kernel() -> None:
    rows = labels(position=[[0, 1, 2]], rank=[[0, 1, 1]])
    for backend in MASKING:
        mask = compile_mask(Request(before("rank"), rows, rows), backend)
        assert bool(seen_of(mask).any(-1).all())
        assert mask.empty_BQ is not None
        assert mask.empty_BQ.tolist() == [[True, False, False]]
