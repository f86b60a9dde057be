"""Plans: what they hold, what they refuse, and the rows and steps that come out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder import GroupPlan
from anyorder.attention import Request
from anyorder.attention.hints import kernel_hint, simplify
from anyorder.errors import UserError
from anyorder.orders.kinds import Random, Spans
from anyorder.visibility import groups


@st.composite
def plans(draw: st.DrawFn) -> GroupPlan:
    """Ragged texts with any ranks, some tokens of the lowest ranks given."""
    group_ids = draw(st.lists(st.lists(st.integers(-2, 5), min_size=1, max_size=7), min_size=1, max_size=3))
    marks = []
    for ranks in group_ids:
        bound = draw(st.integers(min(ranks), max(ranks)))
        marks.append([rank < bound for rank in ranks])
    return GroupPlan.from_group_ids(group_ids, marks)


# ---- constructors ---------------------------------------------------------------------------------


def test_default_group_ids_of_one_text() -> None:
    plan = GroupPlan.from_group_ids([0, 0, 1, 1, 2])
    assert plan.rank_BL.tolist() == [[0, 0, 1, 1, 2]]
    assert plan.steps == [[[0, 1], [2, 3], [4]]]


def test_ragged_group_ids_put_padding_last() -> None:
    plan = GroupPlan.from_group_ids([[3, 0], [5, 7, 6]], given=[[False, True], [False, False, False]])
    assert plan.rank_BL.tolist() == [[3, 0, 8], [5, 7, 6]]
    assert plan.valid_BL.tolist() == [[True, True, False], [True, True, True]]
    assert plan.given_BL.tolist() == [[False, True, False], [False] * 3]
    assert plan.steps == [[[0]], [[0], [2], [1]]]


def test_tensors_are_taken() -> None:
    ids = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    assert GroupPlan.from_group_ids(ids).steps == [[[1], [2], [0]]]
    assert GroupPlan.from_order(ids).steps == [[[2], [0], [1]]]


def test_an_order_names_tokens_and_leaves_the_others_given() -> None:
    plan = GroupPlan.from_order([[2, 0], [1, 2]], lengths=[3, 4])
    assert plan.steps == [[[2], [0]], [[1], [2]]]
    assert plan.given_BL.tolist() == [[False, True, False, False], [True, False, False, True]]
    assert plan.valid_BL.tolist() == [[True, True, True, False], [True] * 4]


def test_masks_say_who_is_given_and_who_is_padding() -> None:
    plan = GroupPlan.from_masks([[True, False, False, True], [False] * 4], [[False, True, False, False], [True] * 4])
    assert plan.valid_BL.tolist() == [[True, True, False, True], [True] * 4]
    assert plan.rank_BL.tolist() == [[0, 1, 5, 0], [1, 2, 3, 4]]
    assert plan.position.tolist() == [[0, 1, 1, 2], [0, 1, 2, 3]]


NAMED: dict[str, tuple[Callable[[], GroupPlan], list[list[list[int]]]]] = {
    "sequential": (lambda: GroupPlan.sequential([3, 2]), [[[0], [1], [2]], [[0], [1]]]),
    "one length": (lambda: GroupPlan.sequential(2), [[[0], [1]]]),
    "reversed": (lambda: GroupPlan.reversed([3, 2], given=[1, 0]), [[[2], [1]], [[1], [0]]]),
    "pairs": (lambda: GroupPlan.pairs([5]), [[[0, 1], [2, 3], [4]]]),
    "blocks": (lambda: GroupPlan.blocks([5, 2], 3, given=[1, 0]), [[[1, 2, 3], [4]], [[0, 1]]]),
    "halves": (lambda: GroupPlan.halves([5, 1]), [[[0, 1, 2], [3, 4]], [[0]]]),
    "spaced": (lambda: GroupPlan.spaced([5], stride=2), [[[0, 2, 4], [1, 3]]]),
    "around given tokens": (lambda: GroupPlan.pairs([5], given=[[False, True, False, False, True]]), [[[0, 2], [3]]]),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_orders(name: str) -> None:
    make, steps = NAMED[name]
    assert make().steps == steps


def test_random_orders_depend_on_seed_and_sample_alone() -> None:
    both = GroupPlan.random([9, 7], seed=3, samples=[20, 5])
    for index, (length, sample) in enumerate(((9, 20), (7, 5))):
        assert GroupPlan.random([length], seed=3, samples=[sample]).steps == [both.steps[index]]
    assert (
        GroupPlan.random([9]).steps == GroupPlan.random([9], samples=[0]).steps != GroupPlan.random([9], seed=1).steps
    )
    assert GroupPlan.random([9, 9]).steps[0] != GroupPlan.random([9, 9]).steps[1]
    assert GroupPlan.spans([9], length=2, seed=1).steps == GroupPlan.ordered(Spans(length=2), 9, seed=1).steps
    assert [len(group) for group in GroupPlan.random([9], size=4).steps[0]] == [4, 4, 1]


# ---- what a plan gives ----------------------------------------------------------------------------


@given(plan=plans(), queries=st.booleans())
@settings(max_examples=100, deadline=None)
def test_rows_show_each_token_what_its_rank_allows(plan: GroupPlan, queries: bool) -> None:
    """The slow twin: from the ranks of the text itself, a double loop over tokens."""
    rows = plan.rows(queries)
    length = rows.n_keys
    key = {name: label[:, :length] for name, label in rows.labels.items()}
    seen = groups().mask(rows.labels, key, rows.valid_BR[:, :length])
    for b, (content, query) in enumerate(zip(rows.content_BL.tolist(), rows.query_BK.tolist(), strict=True)):
        texts = [t for t in range(length) if plan.valid_BL[b, t]]
        rank = plan.rank_BL[b].tolist()
        assert sorted(content) == list(range(length))
        assert [bool(v) for v in rows.valid_BR[b, :length]] == [True] * len(texts) + [False] * (length - len(texts))
        wanted = [t for step in plan.steps[b] for t in step] if queries else []
        assert [t for t, valid in zip(query, rows.valid_BR[b, length:], strict=True) if valid] == wanted
        for row, token in enumerate([*content, *query]):
            if not rows.valid_BR[b, row]:
                continue
            assert rows.labels["position"][b, row] == texts.index(token)
            shown = {content[k] for k in range(length) if seen[b, row, k]}
            looks = row >= length
            assert shown == {t for t in texts if (rank[t] < rank[token] if looks else rank[t] <= rank[token])}


@given(plan=plans())
@settings(max_examples=50, deadline=None)
def test_steps_write_each_token_once_in_order_of_rank(plan: GroupPlan) -> None:
    for sample, steps in enumerate(plan.steps):
        assert sorted(t for step in steps for t in step) == plan.predicted[sample].nonzero().flatten().tolist()
        ranks = [{int(plan.rank_BL[sample, t]) for t in step} for step in steps]
        assert all(len(rank) == 1 for rank in ranks)
        assert [min(rank) for rank in ranks] == sorted({min(rank) for rank in ranks})


@pytest.mark.parametrize("given_counts", [None, [1, 1, 1]])
def test_content_rows_of_groups_of_one_are_plain_causal(given_counts: list[int] | None) -> None:
    plan = GroupPlan.random([6, 4, 1] if given_counts is None else [6, 4, 2], given=given_counts)
    rows = plan.rows(queries=False)
    hint = kernel_hint(simplify(Request(groups(), rows.labels, rows.labels, rows.valid_BR, rows.valid_BR)))
    assert hint is not None
    assert hint.kind == "causal"


def test_the_last_of_an_order_are_predicted() -> None:
    plan = GroupPlan.from_group_ids([[0, 2, 1, 3], [1, 0, 0, 2]])
    last = plan.predict_last(2)
    assert last.steps == [[[1], [3]], [[0], [3]]]
    assert last.rank_BL.tolist() == plan.rank_BL.tolist()
    assert last.given_BL.tolist() == [[True, False, True, False], [False, True, True, False]]
    assert plan.predict_last([1, 3]).steps == [[[3]], [[1, 2], [0], [3]]]
    assert plan.predict_last(99).steps == plan.steps
    assert GroupPlan.sequential([2, 3]).predict_last([1, 2]).steps == [[[1]], [[1], [2]]]


# ---- refusals -------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "floats": (
        lambda: GroupPlan.from_group_ids(torch.tensor([[0.0]])),
        "group_ids is torch.float32 of shape [1, 1]: give whole numbers [batch, length], at least one.",
    ),
    "three dimensions": (
        lambda: GroupPlan.from_group_ids(torch.zeros(1, 2, 3, dtype=torch.int64)),
        "group_ids is torch.int64 of shape [1, 2, 3]: give whole numbers [batch, length], at least one.",
    ),
    "words": (
        lambda: GroupPlan.from_group_ids([["a"]]),
        "group_ids is [['a']]: give a list of whole numbers for each text, none of them empty.",
    ),
    "empty": (
        lambda: GroupPlan.from_group_ids([[0], []]),
        "group_ids is [[0], []]: give a list of whole numbers for each text, none of them empty.",
    ),
    "all given": (
        lambda: GroupPlan.sequential([3, 2], given=[1, 2]),
        "sample 1 has nothing to predict: leave at least one of its tokens not given.",
    ),
    "clash": (
        lambda: GroupPlan.from_group_ids([[0, 1], [4, 5]], given=[[True, False], [False, True]]),
        "token 1 of sample 1 is given but has rank 5, while a token to be predicted has rank 4: give given tokens the "
        "lowest ranks.",
    ),
    "clash in one group": (
        lambda: GroupPlan.from_group_ids([0, 0], given=[[True, False]]),
        "token 0 of sample 0 is given but has rank 0, while a token to be predicted has rank 0: give given tokens the "
        "lowest ranks.",
    ),
    "order twice": (
        lambda: GroupPlan.from_order([[0, 0]]),
        "order is [0, 0] for sample 0, whose text has 2 tokens: name each token that is to be written once, by a "
        "number from 0 to 1.",
    ),
    "order outside": (
        lambda: GroupPlan.from_order([[1], [4]], lengths=3),
        "order is [4] for sample 1, whose text has 3 tokens: name each token that is to be written once, by a number "
        "from 0 to 2.",
    ),
    "no length": (lambda: GroupPlan.sequential([3, 0]), "lengths is [3, 0]: give a number of tokens above 0 for each"),
    "half a length": (
        lambda: GroupPlan.sequential(torch.tensor([1.5])),
        "lengths is Tensor of shape [1]: give a whole number",
    ),
    "lengths of others": (
        lambda: GroupPlan.from_order([[0]], lengths=[1, 2]),
        "lengths is [1, 2]: give a number of tokens above 0 for each of the texts.",
    ),
    "given beyond": (
        lambda: GroupPlan.sequential([3], given=[4]),
        "given is [4] for texts of [3] tokens: give a number from 0 for each text.",
    ),
    "given of others": (
        lambda: GroupPlan.sequential([3], given=[[True, False]]),
        "given has the shape [1, 2], but the texts [1, 3]: give one boolean for each token.",
    ),
    "given as floats": (
        lambda: GroupPlan.sequential([3], given=torch.zeros(1, 3)),
        "given is torch.float32 of shape [1, 3]: give booleans [batch, length].",
    ),
    "given flat": (
        lambda: GroupPlan.sequential([2], given=[True, False]),
        "given is [True, False]: give a list of booleans for each text.",
    ),
    "both": (
        lambda: GroupPlan.from_masks([[True, True]], [[False, True]]),
        "token 1 of sample 0 is both given and to be predicted: choose one.",
    ),
    "different texts": (
        lambda: GroupPlan.from_masks([[True]], [[False, True]]),
        "given and predicted have the shapes [1, 1] and [1, 2]: give both for the same texts.",
    ),
    "samples": (
        lambda: GroupPlan.ordered(Random(), [2, 2], samples=[0]),
        "samples has 1 numbers for 2 texts: give one for each.",
    ),
    "counts": (
        lambda: GroupPlan.sequential([3]).predict_last([0]),
        "counts is [0]: give a number above 0 for each of the texts.",
    ),
    "ranks": (
        lambda: GroupPlan(rank_BL=torch.zeros(2), given_BL=torch.zeros(2), valid_BL=torch.zeros(2)),
        "rank_BL is torch.float32 of shape [2]: give int64 [batch, length].",
    ),
    "masks": (
        lambda: GroupPlan(
            rank_BL=torch.zeros(1, 2, dtype=torch.int64), given_BL=torch.zeros(1, 2), valid_BL=torch.ones(1, 2)
        ),
        "given_BL is torch.float32 of shape [1, 2]: give booleans of the shape of the ranks, [1, 2].",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_field_value_and_remedy(name: str) -> None:
    call, message = REFUSALS[name]
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("values", [[10**30], [[0, 2**41]], {"a": 1}, np.zeros((2, 3)), iter([0]), [[1.5]]])
def test_ranks_of_another_kind_are_refused_in_a_line(values: Any) -> None:
    with pytest.raises(UserError, match=r"^group_ids is .*: give (smaller numbers|a list of whole numbers)") as caught:
        GroupPlan.from_group_ids(values)
    assert "\n" not in str(caught.value)
