"""FlexAttention: its block lists and functions against the dense mask, and few compilations.

Compiling takes tens of seconds here, so most tests run FlexAttention as it is before compilation; that one
applies the functions to every pair, so the block lists are compared with the dense mask by themselves.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from anyorder.attention import BiasTerm, Request, attend, compile_mask, flex
from anyorder.attention.flex import BLOCK, FlexMask, empty_rows, padded_length
from anyorder.visibility import (
    Visibility,
    annealed,
    before,
    bidirectional,
    block_diffusion,
    causal,
    chunks,
    documents,
    groups,
    key_is,
    query_is,
    segments,
    sliding_window,
)
from tests.attention.fakes import Largest
from tests.attention.reference import HEADS, Case, cases, loop_attention, projections
from tests.visibility.rules import Rule, rules

SPARSE: list[Visibility] = [
    causal(),
    groups(),
    before("rank"),
    causal() & documents(),
    causal() & sliding_window(100),
    causal() & chunks(200),
    segments(),
    block_diffusion(),
    ~documents() | query_is("stream", 1),
]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda: flex_attention)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks out of few rows."""
    monkeypatch.setattr(flex, "BLOCK", 4)


def long_labels(batch: int, rows: int, seed: int) -> dict[str, Tensor]:
    """Labels of long rows, some of them sorted, as ordinary batches have them."""
    draw = torch.Generator().manual_seed(seed)
    position = torch.arange(rows).expand(batch, -1)
    rank = torch.randint(0, rows // 4 + 1, (batch, rows), generator=draw).sort(1).values
    return {
        "sample": torch.arange(batch).unsqueeze(1).expand(-1, rows),
        "position": position,
        "rank": rank,
        "stream": torch.randint(0, 2, (batch, rows), generator=draw).sort(1).values,
        "document": (torch.rand(batch, rows, generator=draw) < 0.01).long().cumsum(1),
        "segment": torch.randint(0, 3, (batch, rows), generator=draw),
        "order": position,
        "part": (3 * position) // rows,
        "block": position // 60,
        "noised": torch.randint(0, 2, (batch, rows), generator=draw).sort(1).values,
    }


def listed(counts: Tensor, indices: Tensor) -> Tensor:
    """The block lists as booleans `[batch, row blocks, key blocks]`."""
    blocks = torch.zeros(counts.shape[0], counts.shape[2], indices.shape[3], dtype=torch.bool)
    for b, i in torch.cartesian_prod(*(torch.arange(size) for size in blocks.shape[:2])).tolist():
        blocks[b, i, indices[b, 0, i, : int(counts[b, 0, i])].long()] = True
    return blocks


def lists_of(blocks: BlockMask) -> tuple[Tensor, Tensor]:
    """Blocks read in part and in full."""
    assert blocks.full_kv_num_blocks is not None
    assert blocks.full_kv_indices is not None
    return listed(blocks.kv_num_blocks, blocks.kv_indices), listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)


def by_block(flag_BQK: Tensor) -> Tensor:
    """`[batch, row blocks, key blocks, BLOCK, BLOCK]`, false behind the ends."""
    size = flex.BLOCK
    more = (-flag_BQK.shape[2] % size, -flag_BQK.shape[1] % size)
    padded = torch.nn.functional.pad(flag_BQK, (0, more[0], 0, more[1]))
    return padded.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)


def check_lists(request: Request) -> tuple[int, int, int]:
    """Every visible pair lies in a listed block, full blocks are visible throughout, and no block is listed twice.

    Returns how many blocks are left out, read in part and read in full.
    """
    mask = FlexMask.of(request)
    partial, full = lists_of(mask.blocks)
    assert not bool((partial & full).any())
    keys = request.key["position"].shape[1]
    seen = request.visibility.mask(request.query, request.key, request.present)
    empty = ~seen.any(-1)
    assert torch.equal(empty, torch.zeros_like(empty) if mask.empty_BQ is None else mask.empty_BQ)

    listed_pairs = by_block(seen).flatten(3).any(-1)
    reach = tuple(slice(0, size) for size in listed_pairs.shape)
    assert bool((listed_pairs <= (partial | full)[reach]).all())
    # Rows behind the end are cut off and keys behind the end do not exist: a full block may not reach the latter.
    throughout = by_block(seen | empty.unsqueeze(-1))
    real = by_block(torch.ones_like(seen))
    blocks = full[reach].unsqueeze(-1).unsqueeze(-1)
    assert bool((~(blocks & real) | throughout).all())
    if keys > 1:  # a single key is no padded block: its kernel stops behind it
        assert not bool(full[:, :, keys // flex.BLOCK :].any())
    return int((~(partial | full)).sum()), int(partial.sum()), int(full.sum())


@pytest.mark.parametrize("visibility", SPARSE, ids=str)
@pytest.mark.parametrize(("rows", "keys"), [(300, 300), (300, 513), (1, 700), (130, 90)])
def test_block_lists_cover_the_dense_mask(visibility: Visibility, rows: int, keys: int) -> None:
    query, key = long_labels(2, rows, 0), long_labels(2, keys, 1)
    present = torch.arange(keys) < torch.tensor([[keys], [keys // 2]])
    check_lists(Request(visibility, query, key))
    check_lists(Request(visibility, query, key, present))


@pytest.mark.usefixtures("_small_blocks")
@given(rule=rules(4), sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)), seed=st.integers(0, 999))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_block_lists_of_any_expression(rule: Rule, sizes: tuple[int, int], seed: int) -> None:
    query, key = long_labels(2, sizes[0], seed), long_labels(2, sizes[1], seed + 1)
    present = torch.rand(2, sizes[1]) < 0.9 if seed % 2 else None
    check_lists(Request(rule.visibility, query, key, present))


def test_causal_blocks_are_as_few_as_can_be() -> None:
    """4 x 4 blocks: 6 left out, 4 on the diagonal read in part, 6 in full."""
    rows = {"position": torch.arange(512).expand(1, -1)}
    assert check_lists(Request(causal(), rows, rows)) == (6, 4, 6)
    assert check_lists(Request(bidirectional(), rows, rows)) == (0, 0, 16)


def test_rows_sorted_by_rank_leave_blocks_out() -> None:
    rank = torch.arange(512).expand(1, -1) // 4
    shuffled = rank[:, torch.randperm(512)]
    ordered, random = (
        check_lists(Request(groups(), labels, labels))
        for labels in ({"position": r, "rank": r, "stream": r * 0} for r in (rank, shuffled))
    )
    assert ordered == (6, 4, 6)
    assert random == (0, 16, 0)


@given(case=cases(least=1))
@settings(max_examples=60, deadline=None)
def test_empty_rows(case: Case) -> None:
    request = case.request
    found = empty_rows(request)
    assert found.tolist() == [[not any(keys) for keys in rows] for rows in case.seen]


@given(case=cases(least=1, bias=False))
@settings(max_examples=40, deadline=None)
def test_the_mask_function_is_the_dense_mask(case: Case) -> None:
    """Rows that see nothing are opened, keys of padding stay hidden from all others."""
    plan = FlexMask.of(case.request)
    functions = plan.functions
    functions.plan = plan
    sizes = (len(plan.opened), 1, *plan.request.sizes)
    shown = functions.mask(*torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij"))[:, 0]
    seen = torch.tensor(case.seen)
    rows, keys = seen.shape[1:]
    empty = ~seen.any(-1, keepdim=True)
    assert torch.equal(shown[:, :rows, :keys], seen | empty)
    assert torch.equal(shown[:, :rows, keys:], empty.expand(-1, -1, sizes[3] - keys))


@pytest.mark.usefixtures("_uncompiled", "_small_blocks")
@given(kind=st.sampled_from(sorted(HEADS)), case=cases(least=1))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_a_loop(kind: str, case: Case) -> None:
    batch, rows = case.request.query["position"].shape
    inputs = projections(batch, rows, case.request.key["position"].shape[1], kind)
    q, k, v = (one.detach() for one in inputs)
    out = attend(q, k, v, compile_mask(case.request, "flex"))
    assert out.shape == q.shape
    # The bias, and the scores inside the kernel, are float32.
    torch.testing.assert_close(out, loop_attention(q, k, v, case.seen, case.bias), rtol=0, atol=1e-5)
    empty = ~torch.tensor(case.seen).any(-1)
    assert not out[empty].any()


@pytest.mark.parametrize("length", [1, 2, 128, 129, 256, 1000])
def test_padded_length(length: int) -> None:
    expected = {1: 1, 2: 128, 128: 128, 129: 256, 256: 256, 1000: 1024}
    assert padded_length(length) == expected[length]


# ---- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", [*SPARSE, bidirectional(), annealed(0.5, seed=1)], ids=str)
def test_no_tensor_of_rows_by_keys(visibility: Visibility, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing larger than one block of rows against all keys, from the labels to the call of the kernel."""
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda: lambda q, k, v, **rest: torch.zeros_like(q))
    length = 2048
    labels = long_labels(1, length, 0)
    q, k, v = (torch.randn(1, length, heads, 8) for heads in (2, 1, 1))
    bias = (BiasTerm(key_is("part", 1), 0.5),)
    with Largest() as largest:
        attend(q, k, v, compile_mask(Request(visibility, labels, labels, bias=bias), "flex"))
    assert largest.elements <= BLOCK * length < length * length // 8


# ---- compilations ----------------------------------------------------------------------------------


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts what PyTorch traces anew; what a trace is then turned into plays no part, so it stays eager."""
    count = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
    flex._compiled_flex_attention.cache_clear()
    torch._dynamo.reset()
    yield count
    flex._compiled_flex_attention.cache_clear()
    torch._dynamo.reset()


def decode(step: int, visibility: Visibility, batch: int = 2, bias: tuple[BiasTerm, ...] = ()) -> Tensor:
    """One row a sample over `step` keys, as in writing from left to right."""
    key = long_labels(batch, step, 0)
    query = {name: label[:, -1:] for name, label in key.items()}
    q, k, v = (torch.randn(batch, rows, 1, 8) for rows in (1, step, step))
    mask = compile_mask(Request(visibility, query, key, bias=bias), "flex")
    return attend(q, k, v, mask)


def test_twenty_steps_compile_once(counter: CompileCounterWithBackend) -> None:
    for step in range(100, 120):
        decode(step, causal())
    assert counter.frame_count == 1


def test_growing_past_a_size_compiles_once_more(counter: CompileCounterWithBackend) -> None:
    for step in range(120, 140):
        decode(step, causal())
    assert counter.frame_count == 2


def test_a_rule_written_anew_is_not_compiled_anew(counter: CompileCounterWithBackend) -> None:
    for step in range(20):
        bias = (BiasTerm(key_is("segment", 1), 0.1 * step),)
        decode(50, causal() & documents(), bias=bias)
    assert counter.frame_count == 1
    decode(50, causal() & sliding_window(4))
    assert counter.frame_count == 2


def test_two_rules_in_turn_keep_their_own_functions(counter: CompileCounterWithBackend) -> None:
    """As layers of two kinds do in each pass."""
    rows = {"position": torch.arange(6).unsqueeze(0)}
    q, k, v = (one.detach().float() for one in projections(1, 6, 6, "GQA"))
    requests = [Request(visibility, rows, rows) for visibility in (causal(), causal() & sliding_window(2))]
    masks = [compile_mask(request, "flex") for request in requests]
    for _ in range(3):
        for request, mask in zip(requests, masks, strict=True):
            torch.testing.assert_close(attend(q, k, v, mask), attend(q, k, v, compile_mask(request, "eager")))
    assert counter.frame_count == 2


# ---- the real thing --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "visibility"),
    [("MQA", causal()), ("GQA", groups()), ("MHA", segments() & ~before("rank", shift=90))],
    ids=str,
)
def test_compiled_equals_the_reference(kind: str, visibility: Visibility) -> None:
    labels = long_labels(2, 200, 3)
    present = torch.arange(200) < torch.tensor([[200], [150]])
    for bias in ((), (BiasTerm(key_is("part", 1), torch.tensor([0.3, -0.4])), BiasTerm(before("rank"), 0.2))):
        request = Request(visibility, labels, labels, present, bias=bias)
        q, k, v = (one.detach().float() for one in projections(2, 200, 200, kind, head_dim=16))
        out, expected = (attend(q, k, v, compile_mask(request, backend)) for backend in ("flex", "eager"))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
        seen = visibility.mask(labels, labels, present)
        assert not out[~seen.any(-1)].any()


@pytest.mark.slow
def test_compiled_bfloat16() -> None:
    dtype = torch.bfloat16
    labels = long_labels(1, 40, 0)
    q, k, v = (one.detach().to(dtype) for one in projections(1, 40, 40, "GQA", head_dim=8))
    request = Request(groups(), labels, labels)
    out, expected = (attend(q, k, v, compile_mask(request, backend)) for backend in ("flex", "eager"))
    torch.testing.assert_close(out, expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.slow
def test_compiled_decoding_compiles_once_for_each_size() -> None:
    before_this = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for step in range(120, 140):
        assert bool(decode(step, groups()).isfinite().all())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before_this <= 2
