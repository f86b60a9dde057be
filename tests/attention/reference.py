"""Attention as a plain loop over samples, rows and heads, and random things to attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from anyorder.attention import BiasTerm, Request
from tests.visibility.rules import Rule, flags, loop_mask, rules, tables

HEADS = {"MHA": (4, 4), "GQA": (4, 2), "MQA": (3, 1)}
"""Query heads and key-value heads."""


def loop_attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Sequence[Sequence[Sequence[bool]]], bias: Tensor | None = None
) -> Tensor:
    """`[batch, rows, heads, head_dim]`; `seen` and `bias` are `[batch, rows, keys]`; a row without keys is zero."""
    out = torch.zeros_like(q)
    shared = q.shape[2] // k.shape[2]
    for b, rows in enumerate(seen):
        for row, keys in enumerate(rows):
            visible = [number for number, sees in enumerate(keys) if sees]
            if not visible:
                continue
            for head in range(q.shape[2]):
                scores = torch.stack([q[b, row, head] @ k[b, key, head // shared] for key in visible])
                scores = scores / q.shape[3] ** 0.5
                if bias is not None:
                    scores = scores + bias[b, row, visible]
                weights = (scores - scores.max()).exp()
                weights = weights / weights.sum()
                out = out.index_put(
                    tuple(torch.tensor(i) for i in (b, row, head)),
                    sum(weight * v[b, key, head // shared] for weight, key in zip(weights, visible, strict=True)),
                )
    return out


def projections(batch: int, rows: int, keys: int, kind: str, head_dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values in float64 that want gradients."""
    heads, kv_heads = HEADS[kind]
    shapes = [(batch, rows, heads), (batch, keys, kv_heads), (batch, keys, kv_heads)]
    q, k, v = (torch.randn(*shape, head_dim, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return q, k, v


@dataclass(frozen=True)
class Case:
    """A request, and what it shows by the plain loop: visible pairs and bias, each `[batch][rows][keys]`."""

    request: Request
    seen: list[list[list[bool]]]
    bias: Tensor | None


@st.composite
def cases(draw: st.DrawFn, least: int = 0, rule: st.SearchStrategy[Rule] | None = None, bias: bool = True) -> Case:
    """Any expression over any labels, with and without absent keys and bias."""
    batch, rows, keys = draw(st.integers(1, 2)), draw(st.integers(least, 4)), draw(st.integers(least, 4))
    one = draw(rules(4) if rule is None else rule)
    query, key = draw(tables(batch, rows, low=-1, high=3)), draw(tables(batch, keys, low=-1, high=3))
    present = draw(st.none() | flags(batch, keys))
    terms, total = [], torch.zeros(batch, rows, keys, dtype=torch.float64)
    for related in draw(st.lists(rules(2), max_size=2)) if bias else ():
        number = draw(st.floats(-2, 2))
        per_sample = torch.tensor([number * (b + 1) for b in range(batch)], dtype=torch.float64)
        wide = draw(st.booleans())
        terms.append(BiasTerm(related.visibility, per_sample if wide else number))
        pairs = torch.tensor(loop_mask(related.sees, query, key, None), dtype=torch.float64).view_as(total)
        total = total + pairs * (per_sample.view(-1, 1, 1) if wide else number)
    request = Request(one.visibility, query, key, present, bias=terms)
    return Case(request, loop_mask(one.sees, query, key, present), total if terms else None)
