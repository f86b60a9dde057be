"""Each named constructor equals what its name promises, written as a plain double loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder import visibility as v
from anyorder.errors import UserError
from anyorder.visibility import Visibility
from tests.visibility.rules import Row, flags, loop_mask, tables


def sees_prefix(q: Row, k: Row) -> bool:
    return k["prefix"] == 1 or k["position"] <= q["position"]


def sees_group(q: Row, k: Row) -> bool:
    """Content rows (stream 0) see `rank <= rank`, query rows (stream 1) `rank < rank`; only content rows are keys."""
    return k["rank"] <= q["rank"] if q["stream"] == k["stream"] else k["rank"] < q["rank"]


def sees_segment(q: Row, k: Row) -> bool:
    """Never what comes later; of the rest, all parts before one's own, and one's own segment."""
    if k["order"] > q["order"]:
        return False
    return k["part"] < q["part"] or k["segment"] == q["segment"]


def sees_block(q: Row, k: Row) -> bool:
    if k["noised"] == 0 and k["block"] < q["block"]:
        return True
    return k["block"] == q["block"] and k["noised"] == q["noised"]


CONSTRUCTORS: dict[str, tuple[Visibility, Callable[[Row, Row], bool]]] = {
    "causal": (v.causal(), lambda q, k: k["position"] <= q["position"]),
    "bidirectional": (v.bidirectional(), lambda q, k: True),
    "groups": (v.groups(), sees_group),
    "chunks": (v.chunks(3), lambda q, k: q["position"] // 3 == k["position"] // 3),
    "sliding_window": (v.sliding_window(2), lambda q, k: q["position"] - k["position"] < 2),
    "documents": (v.documents(), lambda q, k: q["document"] == k["document"]),
    "prefix": (v.prefix(), sees_prefix),
    "segments": (v.segments(), sees_segment),
    "block_diffusion": (v.block_diffusion(), sees_block),
    "annealed to causal": (v.annealed(0.0, seed=1), lambda q, k: k["position"] <= q["position"]),
    "annealed to bidirectional": (v.annealed(1.0, seed=1), lambda q, k: True),
    "causal window": (v.causal() & v.sliding_window(3), lambda q, k: 0 <= q["position"] - k["position"] < 3),
    "causal chunk": (
        v.causal() & v.chunks(4),
        lambda q, k: k["position"] <= q["position"] and k["position"] // 4 == q["position"] // 4,
    ),
    "packed causal documents": (
        v.causal() & v.documents(),
        lambda q, k: k["position"] <= q["position"] and k["document"] == q["document"],
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
@given(data=st.data(), counts=st.tuples(st.integers(1, 2), st.integers(0, 6), st.integers(0, 6)))
@settings(max_examples=25, deadline=None)
def test_constructor_equals_its_promise(name: str, data: st.DataObject, counts: tuple[int, int, int]) -> None:
    visibility, sees = CONSTRUCTORS[name]
    batch, rows, keys = counts
    # "noised" and "stream" are drawn beyond 0 and 1 as well: the rule is the expression, not the habit.
    names = tuple(sorted(visibility.names() | {"position"}))
    query, key = data.draw(tables(batch, rows, names, -2, 4)), data.draw(tables(batch, keys, names, -2, 4))
    present = data.draw(st.none() | flags(batch, keys))
    if name == "groups":
        key["stream"] = torch.zeros_like(key["stream"])  # only content rows offer keys
        query["stream"] = query["stream"] % 2
    assert visibility.mask(query, key, present).tolist() == loop_mask(sees, query, key, present)


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize(
    "build",
    [
        v.chunks,
        v.sliding_window,
        lambda size: v.not_after("position", div=size),
        lambda size: v.before("position", div=size),
        lambda size: v.same("position", div=size),
    ],
)
def test_sizes_are_above_zero(build: Callable[[int], Visibility], size: int) -> None:
    with pytest.raises(UserError) as error:
        build(size)
    assert str(error.value) == f"the size of a window, chunk or division is {size}: give a whole number above 0."


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rate_is_a_share(rate: float) -> None:
    with pytest.raises(UserError) as error:
        v.chance(rate, seed=0)
    assert str(error.value) == f"chance has the rate {rate}: give a number from 0 to 1."


def test_a_missing_label_is_named() -> None:
    table = {"position": torch.arange(3).unsqueeze(0)}
    with pytest.raises(UserError) as error:
        v.groups().mask(table, table)
    assert str(error.value) == (
        "the rows carry the labels ['position'], but (key.rank < query.rank or (key.rank == query.rank and "
        "key.stream == query.stream)) reads 'rank': give that label to every row."
    )
    with pytest.raises(UserError, match=r"^the keys carry the labels \[\], but key.position <= query.position reads"):
        v.causal().mask(table, {})


def test_padding_labelled_minus_one_stays_hidden_under_not() -> None:
    """Which keys exist is no label: "not" would turn a hidden -1 into a visible one."""
    query = {"position": torch.tensor([[5]])}
    key = {"position": torch.tensor([[3, 4, -1]])}
    present = torch.tensor([[True, True, False]])
    later = ~v.not_after("position", shift=4)
    assert later.mask(query, key).tolist() == [[[True, True, False]]]
    other = ~v.same("position", shift=1)
    assert other.mask(query, key).tolist() == [[[True, False, True]]]
    assert other.mask(query, key, present).tolist() == [[[True, False, False]]]
