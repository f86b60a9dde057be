"""Every expression equals a plain double loop; bounds and simplify never contradict it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.attention.hints import lowest_and_highest, simplify
from anyorder.attention.mask import Request
from anyorder.visibility import Labels, Ranges
from tests.visibility.rules import Rule, flags, loop_mask, rules, tables

COUNTS = st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 5))


@given(rule=rules(), data=st.data(), counts=COUNTS)
@settings(max_examples=100, deadline=None)
def test_any_expression_equals_a_double_loop(rule: Rule, data: st.DataObject, counts: tuple[int, int, int]) -> None:
    batch, rows, keys = counts
    query, key = data.draw(tables(batch, rows)), data.draw(tables(batch, keys))
    present = data.draw(st.none() | flags(batch, keys))
    mask = rule.visibility.mask(query, key, present)
    assert mask.shape == (batch, rows, keys)
    assert mask.dtype == torch.bool
    assert mask.tolist() == loop_mask(rule.sees, query, key, present)


@given(rule=rules(), data=st.data(), counts=COUNTS)
@settings(max_examples=100, deadline=None)
def test_bounds_never_contradict_the_mask(rule: Rule, data: st.DataObject, counts: tuple[int, int, int]) -> None:
    """Sets of rows and of keys, some of them empty: "possible" covers every pair, "certain" only if all see."""
    batch, rows, keys = counts
    rows, keys = rows + 1, keys + 1
    query, key = data.draw(tables(batch, rows)), data.draw(tables(batch, keys))
    some_rows, some_keys = data.draw(flags(batch, rows)), data.draw(flags(batch, keys))
    possible, certain = rule.visibility.bounds(ranges(query, some_rows), ranges(key, some_keys))
    pairs = some_rows.unsqueeze(2) & some_keys.unsqueeze(1)
    seen = rule.visibility.mask(query, key)
    assert bool((possible.expand(batch) | ~(seen & pairs).any(-1).any(-1)).all())
    assert bool((~certain.expand(batch) | (seen | ~pairs).all(-1).all(-1)).all())


@given(rule=rules(), data=st.data(), counts=COUNTS)
@settings(max_examples=100, deadline=None)
def test_bounds_are_exact_for_one_row_and_one_key(
    rule: Rule, data: st.DataObject, counts: tuple[int, int, int]
) -> None:  # fmt: skip
    """Ranges of one value leave nothing open, but for chance, which no range can know."""
    batch, _, _ = counts
    query, key = data.draw(tables(batch, 1)), data.draw(tables(batch, 1))
    possible, certain = rule.visibility.bounds(ranges(query, None), ranges(key, None))
    seen = rule.visibility.mask(query, key)[:, 0, 0]
    assert bool((seen <= possible).all())
    assert bool((certain <= seen).all())
    if "chance" not in str(rule.visibility):
        assert torch.equal(possible.expand(batch), seen)
        assert torch.equal(certain.expand(batch), seen)


@given(rule=rules(), data=st.data(), counts=COUNTS)
@settings(max_examples=150, deadline=None)
def test_simplify_keeps_the_meaning_for_these_rows(
    rule: Rule, data: st.DataObject, counts: tuple[int, int, int]
) -> None:  # fmt: skip
    batch, rows, keys = counts
    rows, keys = rows + 1, keys + 1
    query, key = data.draw(tables(batch, rows, high=0)), data.draw(tables(batch, keys, low=-1, high=2))
    valid, present = data.draw(st.none() | flags(batch, rows)), data.draw(st.none() | flags(batch, keys))
    plain = simplify(Request(rule.visibility, query, key, present, valid)).visibility
    wanted = torch.ones(batch, rows, dtype=torch.bool) if valid is None else valid
    seen, expected = plain.mask(query, key, present), rule.visibility.mask(query, key, present)
    assert torch.equal(seen & wanted.unsqueeze(2), expected & wanted.unsqueeze(2))


@given(rule=rules())
@settings(max_examples=50, deadline=None)
def test_labels_that_are_read_suffice(rule: Rule) -> None:
    table = {name: torch.zeros(1, 2, dtype=torch.int64) for name in rule.visibility.names()}
    if table:
        assert rule.visibility.mask(table, table).shape == (1, 2, 2)


def ranges(labels: Mapping[str, Tensor], counts: Tensor | None) -> Ranges:
    table: Labels = labels
    return lambda name: lowest_and_highest(table[name], counts)
