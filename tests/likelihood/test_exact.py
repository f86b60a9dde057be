"""Exact likelihoods: against the doubled sequence, and against the sum over all texts there are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyorder
from anyorder import GroupPlan
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.likelihood.exact import gap_log_prob, left_to_right_log_prob, log_prob, over_orders
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.orders.kinds import RightToLeft
from tests.model.doubled import doubled_log_probs
from tests.model.networks import LAYERS, network, random_ids
from tests.orders.test_plan import plans

EXACT = {"rtol": 0.0, "atol": 1e-9}


def any_order(layers: str = "plain", seed: int = 0, **changes: object) -> Llama:
    return network(layers, seed=seed, modes=(ANY_ORDER, LEFT_TO_RIGHT), **changes).double()


def padded(rows: list[list[int]], length: int) -> Tensor:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@settings(deadline=None, max_examples=40)
@given(plan=plans(), layers=st.sampled_from(list(LAYERS)), seed=st.integers(0, 99))
def test_every_plan_equals_the_doubled_sequence(plan: GroupPlan, layers: str, seed: int) -> None:
    model = any_order(layers, seed)
    ids = random_ids(*plan.valid_BL.sum(1).tolist())
    found = log_prob(model, ids, plan)
    for sample, row in enumerate(ids):
        expected_L = doubled_log_probs(model, row, plan.rank_BL[sample, : len(row)].tolist())
        predicted_L = plan.predicted[sample, : len(row)]
        torch.testing.assert_close(found.token_BL[sample, : len(row)], expected_L * predicted_L, **EXACT)
    assert torch.equal(found.predicted_BL, plan.predicted)
    torch.testing.assert_close(found.total, found.token_BL.sum(1), **EXACT)
    alone = [log_prob(model, row, plan.select([sample])).total for sample, row in enumerate(ids)]
    torch.testing.assert_close(torch.cat(alone), found.total, **EXACT)
    torch.testing.assert_close(log_prob(model, padded(ids, plan.rank_BL.shape[1]), plan).total, found.total, **EXACT)


@pytest.mark.parametrize("score", [log_prob, left_to_right_log_prob])
def test_padding_of_a_tokenizer_is_not_scored(score) -> None:
    model, ids = any_order(), random_ids(3, 5)
    plan = GroupPlan.sequential([3, 5], given=[1, 1])
    expected = score(model, ids, plan)
    mask = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    encoded = {"input_ids": torch.tensor([[2, 2, *ids[0]], ids[1]]), "attention_mask": torch.tensor(mask)}
    torch.testing.assert_close(score(model, encoded, plan).token_BL, expected.token_BL, **EXACT)
    with pytest.raises(UserError, match="text 0 has 3 tokens, but its plan is for 5: make a plan of its length"):
        score(model, encoded, GroupPlan.sequential([5, 5], given=[1, 1]))


@pytest.mark.parametrize(
    "plan",
    [
        GroupPlan.sequential(4),
        GroupPlan.from_group_ids([0, 0, 0, 0]),
        GroupPlan.from_group_ids([2, 0, 2, 1]),
        *(GroupPlan.random(4, size=size, seed=seed) for size in (1, 2, 3) for seed in (0, 1)),
    ],
    ids=lambda plan: str(plan.rank_BL[0].tolist()),
)
def test_probabilities_of_all_texts_sum_to_one(plan: GroupPlan) -> None:
    model = any_order(vocab_size=4)
    texts = [list(text) for text in itertools.product(range(4), repeat=4)]
    total = log_prob(model, texts, plan.select([0] * len(texts))).total.exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("given", [[False, True, False, False, True], [True, False, False, True, False]])
@pytest.mark.parametrize("size", [1, 2])
def test_probabilities_of_all_gaps_sum_to_one(given: list[bool], size: int) -> None:
    """What is given is not scored, wherever it stands."""
    model = any_order(vocab_size=4)
    plan = GroupPlan.random(5, given=[given], size=size)
    texts = [
        [
            token_id if not is_given else 3 - at % 4
            for at, (token_id, is_given) in enumerate(zip(text, given, strict=True))
        ]
        for text in itertools.product(range(4), repeat=5)
    ]
    different = [list(text) for text in sorted({tuple(text) for text in texts})]
    assert len(different) == 64
    total = log_prob(model, different, plan.select([0] * 64)).total.exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


def test_a_group_does_not_know_itself_but_the_groups_before() -> None:
    """Reading scores from content rows would leak the answer: then the token at hand would change them."""
    model = any_order()
    plan = GroupPlan.pairs(6).select([0] * 31)
    [ids] = random_ids(6)
    texts = torch.tensor([ids] * 31)
    texts[:, 2] = torch.arange(31)
    changed = log_prob(model, texts, plan).token_BL
    torch.testing.assert_close(changed[:, 3], changed[:1, 3].expand(31), **EXACT)
    assert float(changed[:, 2].exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(changed[:, 4].std()) > 1e-3
    torch.testing.assert_close(changed[:, :2], changed[:1, :2].expand(31, 2), **EXACT)


@pytest.mark.parametrize("sides", ["both", "left"])
def test_gaps_given_both_sides_or_the_left_one(sides: str) -> None:
    model = any_order()
    texts, gaps = random_ids(7, 4), [[2, 3, 4], [1]]
    found = gap_log_prob(model, texts, gaps, order=RightToLeft(), sides=sides)  # type: ignore[arg-type]
    for row, (text, gap) in enumerate(zip(texts, gaps, strict=True)):
        known = text if sides == "both" else text[: max(gap) + 1]
        ranks = [len(gap) - gap.index(at) if at in gap else 0 for at in range(len(known))]
        expected = doubled_log_probs(model, known, ranks)
        for at in range(len(text)):
            assert float(found.token_BL[row, at]) == pytest.approx(float(expected[at]) if at in gap else 0, abs=1e-9)
    two = gap_log_prob(model, texts[:1], [[1, 5]])
    ranks = [0, 1, 0, 0, 0, 2, 0]
    torch.testing.assert_close(two.token_BL[0, [1, 5]], doubled_log_probs(model, texts[0], ranks)[[1, 5]], **EXACT)


@pytest.mark.parametrize(
    ("gaps", "sides", "message"),
    [
        ([[7]], "both", r"^the gap of text 0 is \[7\]: give different positions from 0 to 4, at least one\."),
        ([[1, 1]], "both", r"^the gap of text 0 is \[1, 1\]: give different"),
        ([[]], "both", r"^the gap of text 0 is \[\]: give different"),
        ([[1], [2]], "both", r"^there are 1 texts and gaps for 2: give the positions of each\."),
        ([[1, 3]], "left", r"^sides is 'left' with several gaps in a text: give one gap, or both sides\."),
        ([[1]], "right", r"^sides is 'right': give 'both' or 'left'\."),
    ],
)
def test_gaps_that_are_none(gaps: list[list[int]], sides: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gap_log_prob(any_order(), random_ids(5), gaps, sides=sides)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [False, True])
def test_left_to_right_is_the_loss_of_the_causal_network(left: bool) -> None:
    model = any_order()
    ids = random_ids(7, 4)
    valid = torch.tensor([[True] * 7, [False] * 3 + [True] * 4 if left else [True] * 4 + [False] * 3])
    first = valid.long().cumsum(1) == 1
    plan = GroupPlan.from_masks(first & valid, valid & ~first)
    found = left_to_right_log_prob(model, ids, plan)
    causal = adapt(model, model.config.modes, "left-to-right")
    for sample, row in enumerate(ids):
        nats = causal(torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1)
        torch.testing.assert_close(found.total[sample], -nats.detach(), **EXACT)
    assert found.perplexity == pytest.approx(math.exp(-float(found.total.sum()) / 9))
    torch.testing.assert_close(found.per_token, found.total / torch.tensor([6, 3]), **EXACT)


def test_the_mean_over_orders_has_its_spread() -> None:
    model = any_order()
    ids = random_ids(5, 3)
    [one, two] = over_orders(model, ids, lambda seed: GroupPlan.random([5, 3], seed=seed), orders=6)
    each = [log_prob(model, ids, GroupPlan.random([5, 3], seed=seed)).total for seed in range(6)]
    for spread, values in ((one, [float(value[0]) for value in each]), (two, [float(value[1]) for value in each])):
        assert spread.log_probs == pytest.approx(values, abs=1e-9)
        assert spread.mean == pytest.approx(sum(values) / 6)
        variance = sum((value - spread.mean) ** 2 for value in values) / 5
        assert spread.deviation == pytest.approx(math.sqrt(variance))
        assert spread.standard_error == pytest.approx(math.sqrt(variance / 6))
    [single] = over_orders(model, ids[0], lambda _: GroupPlan.sequential(5), orders=1)
    assert (single.deviation, single.standard_error) == (0.0, 0.0)
    with pytest.raises(UserError, match=r"^orders is 0: give a whole number above 0\.$"):
        over_orders(model, ids, lambda _: GroupPlan.sequential([5, 3]), orders=0)


def test_it_is_public() -> None:
    assert anyorder.log_prob is log_prob


@pytest.mark.parametrize(
    ("ids", "plan", "message"),
    [
        (
            [[1, 2, 3]],
            GroupPlan.sequential(4),
            r"^text 0 has 3 tokens, but its plan is for 4: make a plan of its length\.",
        ),
        ([[1, 2], [1, 2]], GroupPlan.sequential(2), r"^the plan is for 1 texts, but there are 2: plan each of them\."),
        (
            [1, 2, 99],
            GroupPlan.sequential(3),
            r"^text 0 has the token id 99: give ids from 0 to 30, from the tokenizer",
        ),
        ([1, -1, 3], GroupPlan.sequential(3), r"^text 0 has the token id -1: give ids"),
    ],
)
def test_texts_that_do_not_fit(ids: list, plan: GroupPlan, message: str) -> None:
    for score in (log_prob, left_to_right_log_prob):
        with pytest.raises(UserError, match=message):
            score(any_order(), ids, plan)


def test_networks_that_were_not_trained_for_it() -> None:
    with pytest.raises(UserError, match=r"writes by 'left-to-right', not by 'any-order': train it .*--objective perm"):
        log_prob(network(), [1, 2], GroupPlan.sequential(2))
    with pytest.raises(UserError, match="has no logits for the next token"):
        left_to_right_log_prob(network(modes=(ANY_ORDER,)), [1, 2], GroupPlan.sequential(2, given=[1]))
    with pytest.raises(UserError, match=r"^the first token is to be predicted, but from left to right nothing stands"):
        left_to_right_log_prob(network(), [1, 2], GroupPlan.sequential(2))
