"""What is computed with a cache equals what is computed without, to 1e-9 in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from anyorder.errors import UserError
from anyorder.model.cache import Cache
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary
from anyorder.visibility import bidirectional, causal, groups, segments
from tests.model.networks import LAYERS, VOCABULARY, network, pad, random_ids

EXACT = {"rtol": 0.0, "atol": 1e-9}

LOOP = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

pytestmark = pytest.mark.usefixtures("float64", "_no_grad")


@pytest.fixture
def _no_grad():
    with torch.no_grad():
        yield


def read(model: Llama, cache: Cache, parts: list[list[int]], start: list[int]) -> list[Tensor]:
    """Logits of the next tokens of each sample, causal; a sample may have none."""
    if not any(parts):
        return [torch.zeros(0, VOCABULARY) for _ in parts]
    ids, valid = pad(parts)
    position = (torch.arange(ids.shape[1]) + torch.tensor(start).unsqueeze(1)) * valid
    views = model.prepare(causal(), {"position": position}, valid=valid, cache=cache)
    hidden = model.hidden(ids, views, cache)
    assert bool(hidden.isfinite().all())
    out = model.logits(hidden)
    return [one[ok] for one, ok in zip(out, valid, strict=True)]


def uncached(model: Llama, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(data=st.data(), seed=st.integers(0, 99))
def test_ragged_batches_in_pieces(layers: str, data: st.DataObject, seed: int) -> None:
    """Prefill in pieces of any size, then token by token, each sample at its own pace."""
    model = network(layers, data.draw(st.sampled_from(["eager", "sdpa"])), seed)
    batch = data.draw(st.integers(1, 3))
    texts = random_ids(*(data.draw(st.integers(1, 10)) for _ in range(batch)))
    cache, known = model.new_cache(batch, max(map(len, texts))), [0] * batch
    out: list[list[Tensor]] = [[] for _ in texts]
    while known != [len(text) for text in texts]:
        counts = [data.draw(st.integers(0, min(4, len(text) - done))) for text, done in zip(texts, known, strict=True)]
        if not any(counts):
            counts = [min(1, len(text) - done) for text, done in zip(texts, known, strict=True)]
        pieces = [text[done : done + n] for text, done, n in zip(texts, known, counts, strict=True)]
        for b, piece in enumerate(read(model, cache, pieces, known)):
            out[b].append(piece)
        known = [done + n for done, n in zip(known, counts, strict=True)]
    for text, pieces_out in zip(texts, out, strict=True):
        torch.testing.assert_close(torch.cat(pieces_out), uncached(model, text), **EXACT)


@LOOP
@given(data=st.data())
def test_rollback(data: st.DataObject) -> None:
    """What was dropped leaves no mark: other tokens follow as if it had never been read."""
    model = network("chunk")
    texts, wrong = random_ids(4, 6), random_ids(3, 2)
    cache = model.new_cache(2, 12)
    read(model, cache, texts, [0, 0])
    read(model, cache, wrong, [4, 6])
    kept = [data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))]
    cache.drop(cache.labels["position"] >= torch.tensor([[4 + kept[0]], [6 + kept[1]]]))
    right = random_ids(3, 3)
    out = read(model, cache, right, [4 + kept[0], 6 + kept[1]])
    for b in range(2):
        whole = uncached(model, texts[b] + wrong[b][: kept[b]] + right[b])
        torch.testing.assert_close(out[b], whole[-3:], **EXACT)


def test_overwriting_the_last_token() -> None:
    model = network("plain")
    (text,) = random_ids(5)
    cache = model.new_cache(1, 8)
    read(model, cache, [text], [0])
    views = model.prepare(causal(), {"position": torch.tensor([[4]])}, cache=cache, slots=torch.tensor([[4]]))
    out = model.logits(model.hidden(torch.tensor([[30]]), views, cache))[0]
    torch.testing.assert_close(out, uncached(model, [*text[:4], 30])[-1:], **EXACT)
    assert cache.extent == 5
    (following,) = read(model, cache, [[7]], [5])
    torch.testing.assert_close(following, uncached(model, [*text[:4], 30, 7])[-1:], **EXACT)


def test_overwriting_every_slot_in_any_order() -> None:
    """The refresh of a diffusion cache: all rows again, written where they were."""
    model = network("plain")
    old, new = random_ids(6, 6)
    cache = model.new_cache(1, 9)
    position = torch.arange(6).unsqueeze(0)
    model.hidden(torch.tensor([old]), model.prepare(bidirectional(), {"position": position}, cache=cache), cache)
    order = torch.randperm(6).unsqueeze(0)
    views = model.prepare(bidirectional(), {"position": order}, cache=cache, slots=order)
    out = model.hidden(torch.tensor([new]).gather(1, order), views, cache)
    plain = model.hidden(torch.tensor([new]), model.prepare(bidirectional(), {"position": position}))
    torch.testing.assert_close(out, plain[:, order[0]], **EXACT)


def test_rows_that_only_look_leave_nothing_behind() -> None:
    """`n_keys` 0 over a cache: read as often as wanted."""
    model = network("window")
    (text,) = random_ids(5)
    cache = model.new_cache(1, 8)
    read(model, cache, [text], [0])
    look = {"position": torch.tensor([[5, 6]])}
    looks = [
        model.hidden(torch.tensor([[1, 2]]), model.prepare(causal(), look, n_keys=0, cache=cache), cache)
        for _ in range(2)
    ]
    assert torch.equal(*looks)
    assert int(cache.present.sum()) == 5
    (following,) = read(model, cache, [[7]], [5])
    torch.testing.assert_close(following, uncached(model, [*text, 7])[-1:], **EXACT)


def test_looking_into_an_empty_cache() -> None:
    model = network()
    cache = model.new_cache(2, 4)
    labels = {"position": torch.tensor([[0], [3]])}
    views = model.prepare(causal(), labels, n_keys=0, cache=cache)
    out = model.hidden(torch.tensor([[5], [5]]), views, cache)
    assert bool(out.isfinite().all())
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(data=st.data(), seed=st.integers(0, 99))
def test_writing_in_any_order(layers: str, data: st.DataObject, seed: int) -> None:
    """One pass per group, `[group just written ; query rows of the next]`, equals one parallel pass of two streams.

    Orders, group sizes and numbers of groups differ between the samples of a batch.
    """
    model = network(layers, seed=seed)
    length = data.draw(st.integers(1, 6))
    ranks = [data.draw(st.lists(st.integers(0, 3), min_size=length, max_size=length)) for _ in range(2)]
    ids = torch.tensor(random_ids(length, length))
    query_id = VOCABULARY - 1

    position = torch.arange(length).expand(2, -1)
    both = {
        "position": position.repeat(1, 2),
        "rank": torch.tensor(ranks).repeat(1, 2),
        "stream": torch.arange(2 * length).expand(2, -1) // length,
    }
    rows = torch.cat((ids, torch.full_like(ids, query_id)), 1)
    parallel = model.hidden(rows, model.prepare(groups(), both, n_keys=length))[:, length:]

    cache = model.new_cache(2, length)
    for group in range(4):
        written = [[i for i in range(length) if rank[i] == group - 1] for rank in ranks]
        wanted = [[i for i in range(length) if rank[i] == group] for rank in ranks]
        if not any(written) and not any(wanted):
            continue
        (content, content_valid), (queries, queries_valid) = pad(written), pad(wanted)
        position = torch.cat((content, queries), 1)
        labels = {
            "position": position,
            "rank": torch.tensor(ranks).gather(1, position),
            "stream": torch.cat((torch.zeros_like(content), torch.ones_like(queries)), 1),
        }
        step_ids = torch.cat((ids.gather(1, content), torch.full_like(queries, query_id)), 1)
        valid = torch.cat((content_valid, queries_valid), 1)
        views = model.prepare(groups(), labels, n_keys=content.shape[1], valid=valid, cache=cache)
        out = model.hidden(step_ids, views, cache)[:, content.shape[1] :]
        for b in range(2):
            torch.testing.assert_close(out[b, queries_valid[b]], parallel[b, wanted[b]], **EXACT)
    assert int(cache.present.sum()) == sum(rank < 3 for row in ranks for rank in row)


def segment_labels(position: Tensor, part: int, segment: int | Tensor) -> dict[str, Tensor]:
    """A prefix is part 0, segments part 1, what follows part 2."""
    return {
        "position": position,
        "order": position,
        "part": torch.full_like(position, part),
        "segment": torch.zeros_like(position) + segment,
    }


@LOOP
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), prefix_size=st.integers(0, 3))
def test_expanding_a_prefix_and_joining_segments(sizes: list[int], prefix_size: int) -> None:
    """A prefix read once, copied to each segment, the segments joined again: one masked sequence gives the same."""
    model = network("plain")
    prefix, suffix, *parts = random_ids(prefix_size, 3, *sizes)
    n = len(parts)

    whole: dict[str, list[int]] = {name: [] for name in ("position", "order", "part", "segment")}
    following = prefix_size + max(sizes)
    for part, segment, text, start in [
        (0, 0, prefix, 0),
        *((1, number + 1, text, prefix_size) for number, text in enumerate(parts)),
        (2, 0, suffix, following),
    ]:
        for name, column in segment_labels(torch.arange(len(text)) + start, part, segment).items():
            whole[name] += column.tolist()
    labels = {name: torch.tensor([column]) for name, column in whole.items()}
    ids = torch.tensor([[*prefix, *itertools.chain(*parts), *suffix]])
    expected = model.hidden(ids, model.prepare(segments(), labels))[0, -3:]

    one = model.new_cache(1, prefix_size)
    if prefix:
        views = model.prepare(segments(), segment_labels(torch.arange(prefix_size)[None], 0, 0), cache=one)
        model.hidden(torch.tensor([prefix]), views, one)
    many = one.gather(torch.zeros(n, dtype=torch.int64), capacity=following)
    rows, valid = pad(parts)
    number = torch.arange(1, n + 1).unsqueeze(1)
    position = (torch.arange(rows.shape[1]) + prefix_size).expand(n, -1)
    views = model.prepare(segments(), segment_labels(position, 1, number), valid=valid, cache=many)
    model.hidden(rows, views, many)

    sample = [0] * prefix_size + [b for b, text in enumerate(parts) for _ in text]
    slot = [*range(prefix_size), *(prefix_size + i for text in parts for i in range(len(text)))]
    joined = many.gather(torch.tensor([sample]), torch.tensor([slot]), capacity=len(slot) + 3)
    views = model.prepare(segments(), segment_labels((torch.arange(3) + following)[None], 2, 0), cache=joined)
    out = model.hidden(torch.tensor([suffix]), views, joined)[0]
    torch.testing.assert_close(out, expected, **EXACT)


def test_reordering_trimming_and_growing() -> None:
    """Beams: sample 1 goes on twice, without its last token, in a larger cache."""
    model = network("window")
    texts = random_ids(3, 5)
    cache = model.new_cache(2, 5)
    read(model, cache, texts, [0, 0])
    keep = (torch.arange(5) < 4).expand(2, -1)
    cache = cache.gather(torch.tensor([1, 1]), torch.arange(5).expand(2, -1), keep, capacity=9)
    out = read(model, cache, [[3, 4], [5]], [4, 4])
    torch.testing.assert_close(out[0], uncached(model, [*texts[1][:4], 3, 4])[-2:], **EXACT)
    torch.testing.assert_close(out[1], uncached(model, [*texts[1][:4], 5])[-1:], **EXACT)


def test_a_full_cache_is_refused_before_anything_is_written() -> None:
    model = network()
    cache = model.new_cache(1, 3)
    read(model, cache, random_ids(2), [0])
    with pytest.raises(UserError) as error:
        read(model, cache, random_ids(2), [2])
    assert str(error.value) == "the cache has 3 slots and 4 are needed: make a larger one."
    assert int(cache.present.sum()) == 2


def test_dynamic_rotary_is_cached_up_to_the_trained_length() -> None:
    """Beyond it a new token changes what later layers made of the tokens before: no cache could be exact."""
    rotary = DynamicRotary(theta=100.0, factor=4.0, original_max_position_embeddings=8)
    model = network(rotary=rotary)
    (text,) = random_ids(9)
    cache = model.new_cache(1, 12)
    out = torch.cat([read(model, cache, [text[i : i + 1]], [i])[0] for i in range(8)])
    torch.testing.assert_close(out, uncached(model, text[:8]), **EXACT)
    with pytest.raises(UserError) as error:
        read(model, cache, [text[8:]], [8])
    assert str(error.value) == (
        "the text has 9 tokens and dynamic rotary embeddings turn all keys anew beyond 8: "
        "read it without a cache (use_cache=False)."
    )
    assert int(cache.present.sum()) == 8


def test_autocast() -> None:
    model = network().float()
    (text,) = random_ids(6)
    cache = model.new_cache(1, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read(model, cache, [text[:4]], [0])
        (narrow,) = read(model, cache, [text[4:]], [4])
    expected = uncached(model, text)[4:]
    assert float((narrow.float() - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_one_graph_for_a_cached_step() -> None:
    """Fifty steps of a network compiled whole: what changes is traced as data, so few graphs are made."""
    model = network("plain", "sdpa")
    torch._dynamo.reset()
    count = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.hidden, fullgraph=True, backend=count)
    cache, (text,) = model.new_cache(2, 64), random_ids(60)
    views = model.prepare(causal(), {"position": torch.arange(10).expand(2, -1)}, cache=cache)
    compiled(torch.tensor([text[:10]] * 2), views, cache)
    for step in range(10, 60):
        views = model.prepare(causal(), {"position": torch.tensor([[step], [step]])}, cache=cache)
        out = compiled(torch.tensor([[text[step]]] * 2), views, cache)
    torch.testing.assert_close(model.logits(out[0]), uncached(model, text)[-1:], **EXACT)
    assert count.frame_count <= 3  # the prompt, the first step, and steps of any extent
    torch._dynamo.reset()
