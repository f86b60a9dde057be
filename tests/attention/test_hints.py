"""A hinted kernel shows what the dense mask shows, and the common cases do get their hint."""

from __future__ import annotations

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.attention.hints import Hint, kernel_hint, simplify
from anyorder.attention.mask import Request
from anyorder.visibility import (
    Labels,
    Visibility,
    before,
    bidirectional,
    causal,
    documents,
    groups,
    not_after,
    prefix,
    same,
    sliding_window,
)
from tests.visibility.rules import Rule, flags, rules, tables

VISIBILITIES = [
    causal(),
    bidirectional(),
    groups(),
    before("rank"),
    documents(),
    prefix(),
    sliding_window(2),
    causal() & sliding_window(2),
    sliding_window(3) & causal(),
    causal() & documents(),
    documents() & causal(),
    documents() & bidirectional(),
    causal() & documents() & sliding_window(2),
    not_after("rank") & documents(),
    not_after("rank") & sliding_window(2),
    same("document") & same("stream"),
]


def hint_for(
    visibility: Visibility, query: Labels, key: Labels, present: Tensor | None = None, valid: Tensor | None = None
) -> Hint | None:
    return kernel_hint(simplify(Request(visibility, query, key, present, valid)))


def hinted_mask(hint: Hint, batch: int, rows: int, keys: int) -> Tensor:
    """What a kernel shows that is told nothing but the hint, boolean `[batch, rows, keys]`."""
    row, key = torch.arange(rows).unsqueeze(1), torch.arange(keys)
    if hint.kind == "everything":
        seen = torch.ones(rows, keys, dtype=torch.bool)
    elif hint.kind == "causal":
        seen = key <= row
    elif hint.kind == "window":
        assert hint.window is not None
        seen = (key <= row) & (key > row - hint.window)
    else:
        assert hint.starts is not None
        assert hint.starts.dtype == torch.int32
        ends = hint.starts[1:].unsqueeze(1)
        document = (torch.arange(batch * rows) >= ends).sum(0)  # how many documents end before this row
        one = document.view(batch, rows)
        return (one.unsqueeze(2) == one.unsqueeze(1)) & ((key <= row) if hint.causal else True)
    return seen.expand(batch, -1, -1)


@st.composite
def almost_plain_labels(draw: st.DrawFn, batch: int, rows: int) -> dict[str, Tensor]:
    """Labels as ordinary batches have them, now and then with one entry changed."""
    start = draw(st.sampled_from([0, 0, 5]))
    position = torch.arange(start, start + rows).expand(batch, -1).clone()
    steps = torch.tensor(draw(st.lists(st.integers(0, 1), min_size=batch * rows, max_size=batch * rows)))
    labels = {
        "position": position,
        "rank": draw(st.sampled_from([position, position * 2, position // 2])).clone(),
        "document": steps.to(torch.int64).view(batch, rows).cumsum(1),
        "stream": torch.zeros_like(position),
        "prefix": torch.zeros_like(position),
    }
    if draw(st.booleans()) and rows:
        name, sample, row = (
            draw(st.sampled_from(sorted(labels))),
            draw(st.integers(0, batch - 1)),
            draw(st.integers(0, rows - 1)),
        )
        labels[name][sample, row] = draw(st.integers(0, 4))
    return labels


@pytest.mark.parametrize("visibility", VISIBILITIES, ids=str)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_hint_means_the_same_as_the_mask(visibility: Visibility, data: st.DataObject) -> None:
    batch, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    key = data.draw(almost_plain_labels(batch, rows))
    query = (
        key
        if data.draw(st.booleans())
        else data.draw(almost_plain_labels(batch, data.draw(st.sampled_from([rows, 1]))))
    )
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, rows), min_size=batch, max_size=batch)))
    trailing = torch.arange(rows) < lengths.unsqueeze(1)
    present = data.draw(st.sampled_from([None, trailing]) | flags(batch, rows))
    rows = query["position"].shape[1]
    valid = data.draw(
        st.sampled_from([None, present if rows == key["position"].shape[1] else None]) | flags(batch, rows)
    )
    check(visibility, query, key, present, valid)


@given(rule=rules(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_hint_for_any_expression_means_the_same(rule: Rule, data: st.DataObject) -> None:
    batch, rows = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 4))
    labels = data.draw(tables(batch, rows, low=0, high=2))
    labels["position"] = labels["position"].sort(1).values
    check(rule.visibility, labels, labels, data.draw(st.none() | flags(batch, rows)), None)


def check(visibility: Visibility, query: Labels, key: Labels, present: Tensor | None, valid: Tensor | None) -> None:
    hint = hint_for(visibility, query, key, present, valid)
    event(f"hint: {hint.kind if hint else None}")
    if hint is None:
        return
    batch, rows = query["position"].shape
    shown = hinted_mask(hint, batch, rows, key["position"].shape[1])
    wanted = torch.ones(batch, rows, dtype=torch.bool) if valid is None else valid
    assert torch.equal(shown[wanted], visibility.mask(query, key, present)[wanted])


# ---- the cases that shall not pay for a mask --------------------------------------------------------


def arange(*shape: int) -> Tensor:
    return torch.arange(shape[-1]).expand(*shape)


def up_to(lengths: list[int], rows: int) -> Tensor:
    return torch.arange(rows) < torch.tensor(lengths).unsqueeze(1)


def test_causal_prefill() -> None:
    labels = {"position": arange(2, 5)}
    assert hint_for(causal(), labels, labels) == Hint("causal")
    moved = {"position": torch.stack((torch.arange(5), torch.arange(5) * 3 + 100))}
    assert hint_for(causal(), moved, moved) == Hint("causal")


def test_right_padded_prefill() -> None:
    """Padding comes last, so a causal kernel hides it from every wanted row."""
    valid = up_to([5, 2], 5)
    labels = {"position": arange(2, 5) * valid}
    assert hint_for(causal(), labels, labels, valid, valid) == Hint("causal")
    assert hint_for(causal(), labels, labels, valid) is None  # unless told that padding rows are not wanted


def test_left_padded_prefill_needs_a_mask() -> None:
    valid = up_to([5, 2], 5).flip(1)
    labels = {"position": (valid.long().cumsum(1) - 1).clamp(min=0)}
    assert hint_for(causal(), labels, labels, valid, valid) is None


def test_masked_diffusion() -> None:
    labels = {"position": arange(2, 5)}
    assert hint_for(bidirectional(), labels, labels) == Hint("everything")
    assert hint_for(bidirectional(), labels, labels, up_to([5, 4], 5)) is None


def test_decoding_step() -> None:
    """One row whose keys all come before it sees everything, if no sample is shorter than the others."""
    key = {"position": arange(2, 5)}
    assert hint_for(causal(), {"position": torch.tensor([[4], [4]])}, key) == Hint("everything")
    assert hint_for(causal(), {"position": torch.tensor([[4], [3]])}, key) is None
    ragged = up_to([5, 4], 5)
    assert hint_for(causal(), {"position": torch.tensor([[4], [3]])}, key, ragged) is None


def test_decoding_step_within_its_window() -> None:
    step, key = {"position": torch.tensor([[4]])}, {"position": arange(1, 5)}
    assert hint_for(causal() & sliding_window(8), step, key) == Hint("everything")
    assert hint_for(causal() & sliding_window(4), step, key) is None


def test_content_stream_from_left_to_right() -> None:
    rows = {"position": arange(2, 6), "rank": arange(2, 6), "stream": torch.zeros(2, 6, dtype=torch.int64)}
    assert hint_for(groups(), rows, rows) == Hint("causal")
    pairs = rows | {"rank": arange(2, 6) // 2}
    assert hint_for(groups(), pairs, pairs) is None


def test_rows_sorted_by_rank_are_causal_in_any_order() -> None:
    """One token a group, in a permuted order, the rows laid in that order."""
    position = torch.stack((torch.randperm(6), torch.randperm(6)))
    rows = {"position": position, "rank": arange(2, 6), "stream": torch.zeros_like(position)}
    assert hint_for(groups(), rows, rows) == Hint("causal")


def test_packed_documents() -> None:
    labels = {
        "document": torch.tensor([[0, 0, 1, 1, 1], [5, 5, 5, 5, 2]]),
        "position": torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]),
    }
    starts = [0, 2, 5, 9, 10]
    for visibility in (causal() & documents(), documents() & causal()):
        hint = hint_for(visibility, labels, labels)
        assert hint is not None
        assert (hint.kind, hint.causal) == ("documents", True)
        assert hint.starts is not None
        assert hint.starts.tolist() == starts
    hint = hint_for(documents(), labels, labels)
    assert hint is not None
    assert (hint.kind, hint.causal) == ("documents", False)
    assert hint.starts is not None
    assert hint.starts.tolist() == starts


def test_documents_in_pieces_need_a_mask() -> None:
    labels = {"document": torch.tensor([[0, 1, 0]]), "position": arange(1, 3)}
    assert hint_for(documents(), labels, labels) is None
    assert hint_for(documents() & causal(), labels, labels) is None


@pytest.mark.parametrize("visibility", [causal() & sliding_window(3), sliding_window(3) & causal()])
def test_sliding_window(visibility: Visibility) -> None:
    labels = {"position": arange(2, 9) + 4}
    assert hint_for(visibility, labels, labels) == Hint("window", window=3)
    gaps = {"position": arange(2, 9) * 2}
    assert hint_for(visibility, gaps, gaps) is None
    short = {"position": arange(2, 3)}
    assert hint_for(visibility, short, short) == Hint("causal")  # the window hides nothing


def test_nothing_visible_is_no_plain_kernel() -> None:
    labels = {"position": arange(1, 3), "rank": torch.zeros(1, 3, dtype=torch.int64)}
    assert hint_for(before("rank"), labels, labels) is None
