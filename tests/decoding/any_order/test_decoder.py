"""Writing in any order: cached, uncached, batched, alone, and the parallel pass over what was written, agree."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder import GroupPlan
from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, collect
from anyorder.errors import UserError
from anyorder.likelihood.exact import log_prob
from anyorder.model.cache import Cache
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.orders.by_name import AnyOrder
from anyorder.orders.kinds import Halves, LeftToRight, MostConfident, Order, Random, RightToLeft, Spaced, Spans
from tests.decoding.left_to_right.test_decoder import row_of, same
from tests.model.doubled import doubled_logits
from tests.model.networks import LAYERS, network

END = 7
ORDERS: dict[str, AnyOrder] = {
    "left to right": LeftToRight(),
    "pairs": LeftToRight(size=2),
    "right to left": RightToLeft(),
    "random": Random(),
    "random threes": Random(size=3),
    "halves": Halves(),
    "spaced": Spaced(stride=3),
    "spans": Spans(length=2),
    "most confident": MostConfident(),
    "most confident pairs": MostConfident(size=2),
}
CANVASES = [[1, 2, BLANK, BLANK, BLANK], [BLANK] * 3, [BLANK, 4, BLANK, 5, BLANK, BLANK, 6], [3, BLANK, 9]]


@functools.cache
def writer(layers: str = "plain", *end_token_ids: int) -> Llama:
    return network(layers, seed=2, modes=(LEFT_TO_RIGHT, ANY_ORDER), eos_token_ids=end_token_ids).double()


def fill(
    canvases: Sequence[Sequence[int]], order: AnyOrder, *, layers: str = "plain", ends: Sequence[int] = (),
    sample_ids: Sequence[int] | None = None, temperature: float = 1.0, **options: Any,
) -> Generation:  # fmt: skip
    model = writer(layers, *ends)
    sample_ids = range(len(canvases)) if sample_ids is None else sample_ids
    sampling = options.pop("sampling", Sampling(temperature=temperature, seed=3))
    steps = any_order_steps(model, canvases, order, sampling=sampling, sample_ids=sample_ids, **options)
    return collect(steps, canvases, sample_ids, model.config.eos_token_ids)


def plan_of(generation: Generation, canvases: Sequence[Sequence[int]], row: int) -> GroupPlan:
    """The order that was taken, with what was given as one group before it."""
    step_at = {event.position: event.step for event in generation.trace.events if event.sample_id == row}
    ranks = [step_at.get(position, -1) for position in range(len(canvases[row]))]
    return GroupPlan.from_group_ids(ranks, [[rank < 0 for rank in ranks]])


# ---- one mode, four modes of computing it --------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", ORDERS)
def test_cached_is_uncached_and_a_batch_is_one_by_one(name: str, layers: str) -> None:
    together = fill(CANVASES, ORDERS[name], layers=layers)
    same(together, fill(CANVASES, ORDERS[name], layers=layers, use_cache=False))
    for row, canvas in enumerate(CANVASES):
        alone = fill([canvas], ORDERS[name], layers=layers, sample_ids=[row])
        assert {event.sample_id for event in alone.trace.events} == {row}
        same(row_of(together, row), alone)
    assert together.trace.passes == 1 + max(event.step for event in together.trace.events)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", ORDERS)
def test_what_was_written_has_the_likelihood_of_its_trace(name: str, layers: str) -> None:
    """Step by step with a cache, and in one parallel pass: the same numbers, whatever chose the order."""
    out = fill(CANVASES, ORDERS[name], layers=layers)
    for row, text in enumerate(out.sequences):
        exact = log_prob(writer(layers), text, plan_of(out, CANVASES, row)).token_BL[0]
        for event in out.trace.events:
            if event.sample_id == row:
                assert abs(float(exact[event.position]) - event.log_prob) < 1e-9


@st.composite
def planned(draw: st.DrawFn) -> tuple[list[list[int]], GroupPlan]:
    """Canvases of any form with plans of any ranks, given tokens in groups of their own."""
    canvases, ranks, marks = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 7))
        canvas = draw(st.lists(st.sampled_from([BLANK, BLANK, 5, 11]), min_size=length, max_size=length))
        canvas[draw(st.integers(0, length - 1))] = BLANK
        canvases.append(canvas)
        ranks.append([draw(st.integers(0, 4)) + 5 * (token_id == BLANK) for token_id in canvas])
        marks.append([token_id != BLANK for token_id in canvas])
    return canvases, GroupPlan.from_group_ids(ranks, marks)


@settings(deadline=None, max_examples=40)
@given(planned=planned(), layers=st.sampled_from(list(LAYERS)))
def test_every_plan_equals_the_doubled_sequence_step_by_step(
    planned: tuple[list[list[int]], GroupPlan], layers: str
) -> None:
    """The most probable token of the oracle stands at each place, with the oracle's probability."""
    canvases, plan = planned
    out = fill(canvases, plan, layers=layers, temperature=0)
    for row, text in enumerate(out.sequences):
        events = {event.position: event for event in out.trace.events if event.sample_id == row}
        assert [at for at, token_id in enumerate(canvases[row]) if token_id == BLANK] == sorted(events)
        queries = doubled_logits(writer(layers), text, plan.rank_BL[row, : len(text)].tolist())[1]
        for position, event in events.items():
            assert event.token_id == int(queries[position].argmax()) == text[position]
            assert abs(event.log_prob - float(queries[position].log_softmax(-1)[event.token_id])) < 1e-9
    same(out, fill(canvases, plan, layers=layers, temperature=0, use_cache=False))


def test_every_backend_writes_the_same() -> None:
    plain, eager = (
        network("plain", backend, seed=2, modes=(LEFT_TO_RIGHT, ANY_ORDER)).double() for backend in ("sdpa", "eager")
    )
    sampling = Sampling(temperature=1.0)
    one, other = (
        collect(
            any_order_steps(model, CANVASES, Random(), sampling=sampling, sample_ids=range(4)), CANVASES, range(4), ()
        )
        for model in (plain, eager)
    )
    same(one, other)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "int8"])
def test_narrow_weights_write_in_any_order_too(kind: str) -> None:
    model = network("plain", seed=2, modes=(LEFT_TO_RIGHT, ANY_ORDER))
    model = to_int8(model) if kind == "int8" else model.to(getattr(torch, kind))
    runs = []
    for use_cache in (True, False):
        steps = any_order_steps(
            model, CANVASES, Random(), sampling=Sampling(), sample_ids=range(4), use_cache=use_cache
        )
        runs.append(collect(steps, CANVASES, range(4), ()))
    for one, other in zip(*(run.trace.events for run in runs), strict=True):
        assert one.position == other.position
        if one.step == 0:
            assert abs(one.log_prob - other.log_prob) < 0.1
    exact = log_prob(model, runs[0].sequences[0], plan_of(runs[0], CANVASES, 0))
    assert bool(exact.total.isfinite().all())


# ---- what is given, and what comes first ------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_given_tokens_stay(name: str, use_cache: bool) -> None:
    out = fill(CANVASES, ORDERS[name], use_cache=use_cache)
    for canvas, text in zip(CANVASES, out.sequences, strict=True):
        assert len(text) == len(canvas)
        assert all(before in (BLANK, after) for before, after in zip(canvas, text, strict=True))
        assert BLANK not in text
    written = {(event.sample_id, event.position) for event in out.trace.events}
    assert len(written) == len(out.trace.events), "no place is written twice"


def test_given_tokens_are_one_group_unless_a_plan_says_otherwise() -> None:
    """Given tokens that see each other and tokens written one by one behind them are one mechanism: a plan."""
    canvas = [5, 6, BLANK, 8, BLANK]
    one_group = GroupPlan.from_group_ids([0, 0, 1, 0, 2], [[True, True, False, True, False]])
    same(fill([canvas], one_group), fill([canvas], LeftToRight()))
    apart = GroupPlan.from_group_ids([0, 1, 3, 2, 4], [[True, True, False, True, False]])
    one, other = fill([canvas], one_group, temperature=0), fill([canvas], apart, temperature=0)
    assert abs(one.trace.events[0].log_prob - other.trace.events[0].log_prob) > 1e-3


def test_the_first_group_is_written_from_nothing_but_its_place() -> None:
    """Nothing is visible there, and still the network tells positions apart, by the query row's own features."""
    model = writer()
    first = []
    for position in range(4):
        order = [position, *(other for other in range(4) if other != position)]
        out = fill([[BLANK] * 4], GroupPlan.from_order(order), temperature=0)
        assert out.trace.events[0].position == position
        first.append(out.trace.events[0])
    assert len({event.log_prob for event in first}) == 4
    assert model.query_rows is not None
    blind = network("plain", seed=2, modes=(LEFT_TO_RIGHT, ANY_ORDER)).double()
    blind.load_state_dict(model.state_dict())
    blind.query_rows.position.weight.data.zero_()  # type: ignore[union-attr]
    log_probs = set()
    for position in range(4):
        order = [position, *(other for other in range(4) if other != position)]
        steps = any_order_steps(
            blind, [[BLANK] * 4], GroupPlan.from_order(order), sampling=Sampling(temperature=0), sample_ids=[0]
        )
        log_probs.add(round(next(iter(steps)).written[0].log_prob, 12))
    assert len(log_probs) == 1, "without them, rotary embeddings alone cannot tell"


def test_query_rows_leave_nothing_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[Cache] = []

    def kept(self: Llama, batch: int, capacity: int) -> Cache:
        caches.append(original(self, batch, capacity))
        return caches[-1]

    original = Llama.new_cache
    monkeypatch.setattr(Llama, "new_cache", kept)
    fill([[1, BLANK, BLANK], [BLANK, BLANK, BLANK]], LeftToRight())
    [cache] = caches
    assert cache.present.tolist() == [[True, True, False], [True, True, False]]
    assert cache.labels["stream"].max() == 0
    assert cache.labels["rank"][0, :2].tolist() == [-1, 0]
    assert cache.labels["rank"][1, :2].tolist() == [0, 1]


# ---- orders -----------------------------------------------------------------------------------------


def test_the_trace_records_the_order_taken() -> None:
    out = fill([[BLANK] * 5], GroupPlan.from_order([3, 1, 4, 0, 2]))
    assert [(event.step, event.position) for event in out.trace.events] == list(enumerate([3, 1, 4, 0, 2]))


def test_random_orders_depend_on_seed_and_row_alone() -> None:
    def positions(seed: int, sample_ids: Sequence[int]) -> dict[int, list[int]]:
        out = fill(
            [[BLANK] * 8] * len(sample_ids),
            Random(),
            sample_ids=sample_ids,
            sampling=Sampling(temperature=1.0, seed=seed),
        )
        return {row: [event.position for event in out.trace.events if event.sample_id == row] for row in sample_ids}

    batch = positions(0, range(4))
    assert batch | positions(0, [2]) == batch
    assert len({tuple(order) for order in batch.values()}) > 1
    assert positions(1, [2]) != positions(0, [2])


def test_most_confident_writes_where_the_network_is_surest() -> None:
    canvas = [4, BLANK, BLANK, 9, BLANK, BLANK]
    out = fill([canvas], MostConfident(), temperature=0)
    text = list(canvas)
    for event in out.trace.events:
        left = [at for at, token_id in enumerate(text) if token_id == BLANK]
        given = [token_id != BLANK for token_id in text]
        best = {}
        for place in left:  # each place is asked about as the next one, in a pass of its own
            plan = taken(out, canvas, event.step, place, left)
            filled = [token_id if is_given else 0 for token_id, is_given in zip(text, given, strict=True)]
            best[place] = float(doubled_logits(writer(), filled, plan)[1][place].log_softmax(-1).max())
        assert event.position == max(best, key=best.__getitem__)
        assert abs(best[event.position] - event.log_prob) < 1e-9
        text[event.position] = event.token_id


def taken(out: Generation, canvas: Sequence[int], step: int, place: int, left: Sequence[int]) -> list[int]:
    """Ranks: what is given, what was written before this step, the place, and all others behind."""
    ranks = {event.position: event.step for event in out.trace.events if event.step < step}
    return [
        -1 if canvas[at] != BLANK else step if at == place else step + 1 if at in left else ranks[at]
        for at in range(len(canvas))
    ]


def test_a_pass_for_each_group() -> None:
    for order, passes in ((LeftToRight(), 7), (LeftToRight(size=3), 3), (Halves(), 2), (Spaced(stride=4), 4)):
        assert fill([[1] + [BLANK] * 7, [BLANK]], order).trace.passes == passes


# ---- sampling and the end of a text -----------------------------------------------------------------


def test_filters_count_as_from_left_to_right() -> None:
    sampling = Sampling(temperature=0.8, top_k=3, repetition_penalty=1.3, seed=5)
    canvases = [[BLANK, BLANK, 3, BLANK], [BLANK] * 3]
    same(fill(canvases, Random(), sampling=sampling), fill(canvases, Random(), sampling=sampling, use_cache=False))
    out = fill(canvases, Random(), sampling=sampling)
    for event in out.trace.events:
        assert event.log_prob > -10


def test_a_text_that_goes_on_ends_with_an_end_token() -> None:
    """What is left behind it is not written; with something given behind, all is."""
    full = fill([[1] + [BLANK] * 9], LeftToRight(), temperature=1.5)
    end = full.sequences[0][4]
    out = fill([[1] + [BLANK] * 9], LeftToRight(), temperature=1.5, ends=(end,))
    first = full.sequences[0].index(end)
    assert out.sequences == [full.sequences[0][: first + 1]]
    assert out.written == [full.sequences[0][1 : first + 1]]
    assert out.stopped == ["end"]
    assert out.trace.passes == first

    gap = fill([[1] + [BLANK] * 9 + [2]], LeftToRight(), temperature=1.5, ends=(end,))
    assert gap.stopped == ["length"]
    assert len(gap.sequences[0]) == 11


def test_an_end_token_in_the_middle_spares_what_is_left_behind_it() -> None:
    """The text is complete when all before it is written; what had been written behind it is in the trace alone."""
    order = GroupPlan.from_order([5, 2, 0, 4, 1, 3, 6])
    full = fill([[BLANK] * 7], order)
    end = full.sequences[0][2]
    assert full.sequences[0].index(end) == 2
    out = fill([[BLANK] * 7], order, ends=(end,))
    assert [event.position for event in out.trace.events] == [5, 2, 0, 1]
    assert len(out.sequences[0]) == len(out.written[0]) == 3
    assert out.sequences[0][2] == end
    assert out.stopped == ["end"]


def test_the_condition_to_stop_reads_the_text_so_far() -> None:
    asked: list[tuple[int, list[int]]] = []

    def stop(row: int, text: Sequence[int]) -> bool:
        asked.append((row, list(text)))
        return row == 1 and len(text) >= 2

    order = GroupPlan.from_order([[2, 0, 1, 3], [0, 2, 1, 3]])
    out = fill([[BLANK] * 4] * 2, order, stop=stop)
    assert out.stopped == ["length", "stop"]
    assert [len(text) for row, text in asked if row == 0] == [1, 3, 4]
    assert [len(text) for row, text in asked if row == 1] == [1, 3]
    assert out.sequences[1] == max((text for row, text in asked if row == 1), key=len)


def test_end_tokens_end_what_stop_reads() -> None:
    full = fill([[BLANK] * 4], LeftToRight()).sequences[0]
    asked: list[list[int]] = []

    def stop(_: int, text: Sequence[int]) -> bool:
        asked.append(list(text))
        return False

    out = fill([[BLANK] * 4], LeftToRight(), ends=(full[1],), stop=stop)
    assert asked == [full[:1]]
    assert out.stopped == ["end"]


# ---- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canvases", "order", "message"),
    [
        ([], LeftToRight(), r"^there are 0 prompts: give at least one\."),
        ([[1, 2]], LeftToRight(), r"^prompt 0 leaves nothing to write: give max_new_tokens, or a gap in it\."),
        ([[1, 99, BLANK]], LeftToRight(), r"^prompt 0 has the token id 99: give ids from 0 to 30"),
        ([[BLANK] * 2049], Random(), r"^prompt 0 has 2049 tokens with those to be written, and the network was"),
        ([[BLANK] * 3], GroupPlan.sequential(4), r"^the plan is for a text of 4 tokens, but prompt 0 has 3 with"),
        ([[BLANK] * 3] * 2, GroupPlan.sequential(3), r"^the plan is for 1 texts, but there are 2: plan each of them\."),
        ([[5, BLANK]], GroupPlan.sequential(2), r"^token 0 of prompt 0 is given, but not in the plan: mark it in"),
        (
            [[BLANK, BLANK]], GroupPlan.sequential(2, given=[1]),
            r"^token 0 of prompt 0 is to be written, but not in the plan: leave it out of the plan's given tokens\.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_filled(canvases: list[list[int]], order: Order | GroupPlan, message: str) -> None:
    with pytest.raises(UserError, match=message):
        any_order_steps(writer(), canvases, order, sampling=Sampling(), sample_ids=range(len(canvases)))


def test_a_network_without_query_rows_is_told_how_to_get_them() -> None:
    with pytest.raises(
        UserError, match=r"not by 'any-order': train it for that from this checkpoint, with `anyorder pre"
    ):
        any_order_steps(network(), [[BLANK]], LeftToRight(), sampling=Sampling(), sample_ids=[0])


def test_scores_that_are_no_numbers() -> None:
    broken = network(modes=(ANY_ORDER,)).double()
    broken.lm_head.weight.data[3] = torch.nan
    steps = any_order_steps(broken, [[BLANK]], LeftToRight(), sampling=Sampling(), sample_ids=[0])
    with pytest.raises(UserError, match="scores for row 0 are NaN"):
        next(iter(steps))
