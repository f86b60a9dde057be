"""Speculation: the same distribution as one group a pass, in fewer passes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anyorder import GroupPlan
from anyorder.decoding.any_order import speculation
from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.any_order.speculation import Speculative, speculative_steps
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Trace, collect
from anyorder.errors import UserError
from anyorder.likelihood.exact import log_prob
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from anyorder.orders.kinds import Halves, LeftToRight, MostConfident, Order, Random, RightToLeft
from tests.decoding.any_order.test_decoder import CANVASES, writer
from tests.decoding.left_to_right.test_decoder import row_of, same
from tests.model.networks import LAYERS, network

ORDERS: dict[str, Order] = {
    "left to right": LeftToRight(),
    "random": Random(),
    "pairs": Random(size=2),
    "halves": Halves(),
    "right to left": RightToLeft(),
}


def fill(
    canvases: Sequence[Sequence[int]], order: GroupPlan | Order, *, draft: int = 3, model: Llama | None = None,
    sample_ids: Sequence[int] | None = None, temperature: float = 1.0, seed: int = 3, **options: Any,
) -> Generation:  # fmt: skip
    model = writer() if model is None else model
    sample_ids = range(len(canvases)) if sample_ids is None else sample_ids
    sampling = options.pop("sampling", Sampling(temperature=temperature, seed=seed))
    speculative = Speculative(order=order, draft=draft)
    steps = speculative_steps(model, canvases, speculative, sampling=sampling, sample_ids=sample_ids, **options)
    return collect(steps, canvases, sample_ids, model.config.eos_token_ids)


def one_by_one(canvases: Sequence[Sequence[int]], order: Any, model: Llama, sampling: Sampling) -> Generation:
    rows = range(len(canvases))
    steps = any_order_steps(model, canvases, order, sampling=sampling, sample_ids=rows)
    return collect(steps, canvases, rows, model.config.eos_token_ids)


# ---- the distribution -----------------------------------------------------------------------------


def tiny() -> Llama:
    """Three tokens, which depend strongly on each other, so that drafts are often wrong."""
    return network("plain", seed=5, modes=(ANY_ORDER,), vocab_size=3, initializer_range=0.9).double()


CASES: dict[str, tuple[list[int], list[int]]] = {
    "left to right": ([BLANK] * 3, [0, 1, 2]),
    "right to left in pairs": ([BLANK] * 4, [1, 1, 0, 0]),
    "around a given token": ([BLANK, BLANK, 1, BLANK, BLANK], [1, 0, -1, 2, 2]),
}
SAMPLES = 4000


def counted(canvas: list[int], ranks: list[int], draft: int, seed: int) -> tuple[list[float], list[float]]:
    """Of each possible text, how often it was written, and how often it should have been."""
    plan = GroupPlan.from_group_ids([ranks], [[token_id != BLANK for token_id in canvas]])
    out = fill([canvas] * SAMPLES, plan.select([0] * SAMPLES), draft=draft, model=tiny(), seed=seed)
    found = Counter(map(tuple, out.sequences))
    choices = [range(3) if token_id == BLANK else [token_id] for token_id in canvas]
    texts = [list(text) for text in itertools.product(*choices)]
    exact = log_prob(tiny(), texts, plan.select([0] * len(texts))).total.exp()
    assert float(exact.sum()) == pytest.approx(1, abs=1e-9)
    return [float(found[tuple(text)]) for text in texts], (SAMPLES * exact).tolist()


def chi_squared_p(found: list[float], expected: list[float]) -> float:
    """Texts that are expected less than 5 times count as one."""
    rare = [index for index, count in enumerate(expected) if count < 5]
    common = [index for index in range(len(expected)) if index not in rare]
    observed = [found[index] for index in common] + ([sum(found[index] for index in rare)] if rare else [])
    wanted = [expected[index] for index in common] + ([sum(expected[index] for index in rare)] if rare else [])
    scale = sum(observed) / sum(wanted)
    return float(stats.chisquare(observed, [count * scale for count in wanted]).pvalue)


@pytest.mark.parametrize(("name", "draft"), [*((name, 3) for name in CASES), ("around a given token", 2)])
def test_samples_follow_the_sequential_distribution(name: str, draft: int) -> None:
    """4000 samples; a false alarm has probability 1e-4 a case.

    With up to 80 degrees of freedom a distribution that is off by an effect size w = 0.17 (the root of the mean
    squared relative error) is found with probability 0.98 at least: `test_power_is_as_stated`.
    """
    found, expected = counted(*CASES[name], draft=draft, seed=draft)
    assert chi_squared_p(found, expected) > 1e-4


def test_power_is_as_stated() -> None:
    critical = stats.chi2.isf(1e-4, 80)
    assert stats.ncx2.sf(critical, 80, SAMPLES * 0.17**2) > 0.98


def test_the_test_finds_the_variant_that_does_not_draw_from_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """sigma-GPT draws a rejected token anew from p, not from max(0, p - q): that is biased, and this test sees it."""

    def biased(p_V: torch.Tensor, draft: Any, rng: torch.Generator) -> tuple[int, bool]:
        if draft is not None:
            u = torch.rand((), dtype=torch.float64, generator=rng)
            if u * draft.probability_V[draft.token_id] < p_V[draft.token_id]:
                return draft.token_id, True
        return int(speculation.draw(p_V[None], [rng])), False

    monkeypatch.setattr(speculation, "_judged", biased)
    found, expected = counted(*CASES["left to right"], draft=3, seed=0)
    assert chi_squared_p(found, expected) < 1e-6


# ---- the same text in fewer passes ------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("layers", LAYERS)
def test_cached_is_uncached_and_a_batch_is_one_by_one(name: str, layers: str) -> None:
    model = writer(layers)
    together = fill(CANVASES, ORDERS[name], model=model)
    same(together, fill(CANVASES, ORDERS[name], model=model, use_cache=False))
    for row, canvas in enumerate(CANVASES):
        same(row_of(together, row), fill([canvas], ORDERS[name], model=model, sample_ids=[row]))


@pytest.mark.parametrize("name", ORDERS)
def test_the_most_probable_tokens_are_the_sequential_ones(name: str) -> None:
    greedy = Sampling(temperature=0.0, repetition_penalty=1.2, seed=3)
    fast = fill(CANVASES, ORDERS[name], sampling=greedy)
    slow = one_by_one(CANVASES, ORDERS[name], writer(), greedy)
    assert fast.sequences == slow.sequences
    expected = {(event.sample_id, event.position): event.log_prob for event in slow.trace.events}
    for event in fast.trace.events:
        assert abs(event.log_prob - expected[event.sample_id, event.position]) < 1e-9


@settings(deadline=None, max_examples=60)
@given(
    canvas=st.lists(st.sampled_from([BLANK, BLANK, BLANK, 1, 2]), min_size=1, max_size=9).filter(lambda c: BLANK in c),
    draft=st.integers(2, 6),
    order=st.sampled_from(list(ORDERS.values())),
    seed=st.integers(0, 99),
)
def test_there_are_never_more_passes_than_groups(canvas: list[int], draft: int, order: Order, seed: int) -> None:
    out = fill([canvas], order, draft=draft, seed=seed)
    groups = GroupPlan.from_masks(
        [[t != BLANK for t in canvas]], [[t == BLANK for t in canvas]], order, seed=seed
    ).steps
    assert out.trace.passes <= len(groups[0]) <= canvas.count(BLANK)
    assert all(before in (BLANK, after) for before, after in zip(canvas, out.sequences[0], strict=True))
    assert len({event.position for event in out.trace.events}) == canvas.count(BLANK)


def test_log_probabilities_are_those_of_the_sequential_order() -> None:
    order = GroupPlan.random(
        [5, 3, 7, 3], given=[[t != BLANK for t in c] + [False] * (7 - len(c)) for c in CANVASES], seed=1
    )
    out = fill(CANVASES, order, draft=4)
    exact = log_prob(writer(), out.sequences, order).token_BL
    for event in out.trace.events:
        assert abs(float(exact[event.sample_id, event.position]) - event.log_prob) < 1e-9


def test_when_every_draft_stays_a_round_writes_one_group_more_than_it_drafts() -> None:
    """Where tokens do not depend on each other, the drafts are never wrong."""
    model = network("plain", modes=(ANY_ORDER,)).double()
    for name, weight in model.named_parameters():
        if "o_proj" in name:
            weight.data.zero_()  # nobody sees anybody
    out = fill([[BLANK] * 12], Random(), draft=3, model=model)
    assert (out.trace.drafted, out.trace.accepted) == (6, 6)
    assert out.trace.passes == 6  # 1 + 2 drafts + 1 behind them, three times
    assert out.trace.summary().endswith("6 of 6 drafts accepted")
    assert Trace.from_json(out.trace.to_json()) == out.trace
    assert Trace.join([out.trace, out.trace]).accepted == 12


def test_texts_end_as_they_do_one_by_one() -> None:
    """End tokens, conditions to stop: what was drafted behind them is no text."""
    greedy = Sampling(temperature=0.0)
    canvases = [[1] + [BLANK] * 9, [BLANK] * 8]
    full = one_by_one(canvases, LeftToRight(), writer(), greedy)
    for end in full.sequences[0][1:6]:
        model = writer("plain", end)
        for order in (LeftToRight(), Random(), LeftToRight(size=2)):
            fast, slow = fill(canvases, order, model=model, sampling=greedy), one_by_one(canvases, order, model, greedy)
            assert (fast.sequences, fast.stopped) == (slow.sequences, slow.stopped)

    def stop(row: int, text: Sequence[int]) -> bool:
        return row == 0 and len(text) >= 4

    out = fill(canvases, LeftToRight(), sampling=greedy, stop=stop)
    assert out.stopped == ["stop", "length"]
    assert out.sequences[0] == full.sequences[0][:5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"order": LeftToRight(), "draft": 1},
            r"^draft is 1: give a number of groups above 1, or leave speculation out\.",
        ),
        (
            {"order": MostConfident()},
            r"^the order of a draft is MostConfident, known only as it is written: give a fixed",
        ),
    ],
)
def test_what_cannot_be_drafted(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Speculative(**fields)
