"""Keys with a softmax of their own: equal to a plain loop, and to plain attention where nothing is tempered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.attention import BACKENDS, Request, Tempered, attend, compile_mask
from anyorder.errors import UserError
from anyorder.visibility import causal, key_is
from tests.attention.reference import HEADS, Case, cases, projections
from tests.attention.test_attend import gradients
from tests.visibility.rules import Rule, loop_mask, rules

TEMPERING = [name for name, backend in BACKENDS.items() if backend.lse]


def loop(
    q: Tensor, k: Tensor, v: Tensor, case: Case, part: list[list[list[bool]]], temperature: float, scale: float
) -> Tensor:
    """exp(s) for the others; for the part exp(s / T), and the sum of these to the power of the scale."""
    out = torch.zeros_like(q)
    shared = q.shape[2] // k.shape[2]
    for b, row, head in ((b, r, h) for b in range(q.shape[0]) for r in range(q.shape[1]) for h in range(q.shape[2])):
        visible = [key for key, sees in enumerate(case.seen[b][row]) if sees]
        if not visible:
            continue
        weights = []
        for key in visible:
            score = q[b, row, head] @ k[b, key, head // shared] / q.shape[3] ** 0.5
            bias = 0.0 if case.bias is None else case.bias[b, row, key]
            weights.append((score / (temperature if part[b][row][key] else 1.0) + bias).exp())
        total = sum(w for w, key in zip(weights, visible, strict=True) if part[b][row][key])
        grown = [w * total ** (scale - 1) if part[b][row][key] else w for w, key in zip(weights, visible, strict=True)]
        share = torch.stack(grown) / sum(grown)
        out[b, row, head] = sum(w * v[b, key, head // shared] for w, key in zip(share, visible, strict=True))
    return out


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("backend", TEMPERING)
@given(case=cases(), rule=rules(2), temperature=st.floats(0.3, 3), scale=st.floats(0.3, 3))
@settings(max_examples=20, deadline=None)
def test_equals_a_loop(backend: str, kind: str, case: Case, rule: Rule, temperature: float, scale: float) -> None:
    batch, rows = case.request.query["position"].shape
    q, k, v = (one.detach() for one in projections(batch, rows, case.request.key["position"].shape[1], kind))
    request = replace(case.request, tempered=Tempered(rule.visibility, temperature, scale))
    out = attend(q, k, v, compile_mask(request, backend))
    part = loop_mask(rule.sees, request.query, request.key, None)
    torch.testing.assert_close(out, loop(q, k, v, case, part, temperature, scale), rtol=0, atol=1e-12)


@given(case=cases(least=1), rule=rules(2))
@settings(max_examples=20, deadline=None)
def test_one_and_one_change_nothing_backwards_either(case: Case, rule: Rule) -> None:
    batch, rows = case.request.query["position"].shape
    inputs = projections(batch, rows, case.request.key["position"].shape[1], "GQA")
    tempered = replace(case.request, tempered=Tempered(rule.visibility, 1.0, 1.0))
    outs = [attend(*inputs, compile_mask(request, "sdpa")) for request in (tempered, case.request)]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
    grads = [gradients(out, inputs) for out in outs if out.requires_grad]
    if len(grads) == 2:
        torch.testing.assert_close(*grads, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("temperature", "scale"), [(0.0, 1.0), (1.0, -1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_numbers_that_cannot_be(temperature: float, scale: float) -> None:
    with pytest.raises(UserError, match=r"the (temperature|scale) of key.part == 1 is .*: give a number above 0\."):
        Tempered(key_is("part", 1), temperature, scale)


def test_a_backend_that_cannot_says_which_can() -> None:
    position = {"position": torch.arange(3).unsqueeze(0)}
    request = Request(causal(), position, position, tempered=Tempered(key_is("position", 1), 0.5, 1.0))
    with torch.no_grad(), pytest.raises(UserError, match="'flex' cannot temper some of the scores: choose 'sdpa'"):
        compile_mask(request, "flex", torch.float32)


def test_a_label_that_is_missing_is_named() -> None:
    position = {"position": torch.arange(3).unsqueeze(0)}
    request = Request(causal(), position, position, tempered=Tempered(key_is("part", 1), 0.5, 1.0))
    with pytest.raises(UserError, match="reads 'part': give that label"):
        compile_mask(request, "sdpa")
