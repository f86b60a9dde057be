"""Fusion in any order and by masked diffusion: the identities of fusion from left to right, and a plain loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyorder
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.decoding.fusion.layout import POSITIONS, Question
from anyorder.errors import UserError
from anyorder.model.config import LayerKind
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from anyorder.orders.kinds import LeftToRight
from tests.decoding.fusion.test_decoder import questions
from tests.decoding.fusion_oracle import places
from tests.model.doubled import oracle_query_rows
from tests.model.networks import LAYERS, VOCABULARY, network
from tests.model.oracle import narrowed, oracle_logits

MASK = VOCABULARY  # so that no question has it
Events = list[tuple[int, int, int, float]]
ORDERS: dict[str, Any] = {
    "any-order": "any-order",
    "right to left": "right-to-left",
    "random pairs": "random:2",
    "confidence": "confidence",
    "diffusion": "diffusion",
    "diffusion in blocks": anyorder.DiffusionSampler(block_length=2, grow=True),
    "guided diffusion": anyorder.DiffusionSampler(cfg_scale=0.5),
}
DIFFUSING = [name for name in ORDERS if "diffusion" in name]


@functools.cache
def net(layers: str, name: str, shifted: bool = False) -> Llama:
    modes = (diffusion(MASK, shifted=shifted),) if name in DIFFUSING else (LEFT_TO_RIGHT, ANY_ORDER)
    return network(layers, seed=2, modes=modes, eos_token_ids=(), vocab_size=VOCABULARY + 1).double()


def fuse(model: Llama, name: str, segments: Sequence[Sequence[int]], **options: Any) -> Any:
    return anyorder.fuse(model, None, [list(segment) for segment in segments], order=ORDERS[name], **options)


def events(out: Any, row: int = 0) -> Events:
    """Step, place in the answer, token and log-probability."""
    start = len(out.sequences[row]) - len(out.token_ids if isinstance(out.token_ids[0], int) else out.token_ids[row])
    mine = (event for event in out.trace.events if event.sample_id == row)
    return sorted((event.step, event.position - start, event.token_id, event.log_prob) for event in mine)


def alike(
    one: list[tuple[int, int, int, float]], other: list[tuple[int, int, int, float]], atol: float = 1e-12
) -> None:
    assert [event[:3] for event in one] == [event[:3] for event in other]
    assert [event[3] for event in one] == pytest.approx([event[3] for event in other], abs=atol)


# Two masks in other chunks may have the same scores, of which rounding would choose.
CASES = [(name, layers) for name in ORDERS for layers in LAYERS if layers != "chunk" or name not in DIFFUSING]


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_identical_phrasings_are_the_single_prompt(name: str, layers: str) -> None:
    """And one phrasing is plain writing in that order, wherever phrasings are read."""
    model = net(layers, name)
    prefix, segment, suffix = [1, 2, 3], [4, 5, 6, 9], [7, 8]
    plain = anyorder.generate(model, None, [*prefix, *segment, *suffix], order=ORDERS[name], max_new_tokens=5)
    for count, positions, use_cache in ((1, "running", True), (4, "shared", True), (3, "spread", False)):
        fused = fuse(
            model, name, [segment] * count, prefix=prefix, suffix=suffix, max_new_tokens=5, positions=positions,
            use_cache=use_cache,
        )  # fmt: skip
        assert fused.token_ids == plain.token_ids
        assert fused.passes == plain.passes
        alike(events(fused), events(plain))


@pytest.mark.parametrize("name", ORDERS)
def test_without_the_correction_they_are_not(name: str) -> None:
    model = net("plain", name)
    parts: dict[str, Any] = {"prefix": [1, 2, 3], "suffix": [7, 8], "max_new_tokens": 5}
    one, four = (fuse(model, name, [[4, 5, 6]] * count, correction="none", **parts) for count in (1, 4))
    assert max(abs(a[3] - b[3]) for a, b in zip(events(one), events(four), strict=True)) > 1e-3
    tempered = fuse(model, name, [[4, 5, 6]] * 4, correction="ape:1,1", **parts)
    alike(events(tempered), events(four))


@pytest.mark.parametrize("name", ORDERS)
@settings(max_examples=4, deadline=None)
@given(asked=st.lists(questions, min_size=1, max_size=3), order=st.randoms(), positions=st.sampled_from(POSITIONS))
def test_batches_and_the_order_of_phrasings_mean_nothing(
    name: str, asked: list[Question], order: Any, positions: str
) -> None:
    model = net("plain", name)
    options: dict[str, Any] = {"order": ORDERS[name], "max_new_tokens": 3}
    parts = [[list(segment) for segment in question.segments] for question in asked]
    prefixes, suffixes = [list(q.prefix) for q in asked], [list(q.suffix) for q in asked]
    batch = anyorder.fuse(model, None, parts, prefix=prefixes, suffix=suffixes, positions=positions, **options)
    if "random" in name:
        return  # draws go by the number in the list; what follows asks each question as the first one
    for row, (segments, prefix, suffix) in enumerate(zip(parts, prefixes, suffixes, strict=True)):
        alone = anyorder.fuse(model, None, segments, prefix=prefix, suffix=suffix, positions=positions, **options)
        alike(events(alone), events(batch, row), atol=1e-9)
        order.shuffle(segments)
        shared = {"prefix": prefix, "suffix": suffix}
        swapped = anyorder.fuse(model, None, segments, **shared, **options)
        straight = anyorder.fuse(model, None, [list(s) for s in asked[row].segments], **shared, **options)
        alike(events(swapped), events(straight), atol=1e-9)


def oracle(
    model: Llama, question: Question, positions: str, answer: Sequence[int], queries: Sequence[int] | None
) -> Tensor:
    """Logits of the rows of an answer, or of query rows at these places of it, by a loop over rows and keys."""
    place, behind = places(question, positions)
    owner = [0] * len(question.prefix)
    for number, segment in enumerate(question.segments, start=1):
        owner += [number] * len(segment)
    count, start = len(question.segments), len(owner) + len(question.suffix)
    owner += [0] * (len(question.suffix) + len(answer))
    place += [float(behind + j) for j in range(len(question.suffix) + len(answer))]
    ids = [*question.prefix, *(token for segment in question.segments for token in segment), *question.suffix, *answer]
    written = [index for index, token in enumerate(ids) if token >= 0]
    given = range(start)
    asked = () if queries is None else queries
    all_places = [place[index] for index in written] + [place[start + at] for at in asked]
    all_owners = [owner[index] for index in written] + [0] * len(asked)

    def sees(kind: LayerKind, row: int, key: int) -> bool:
        apart = all_owners[row] > 0 and all_owners[key] > 0 and all_owners[row] != all_owners[key]
        late = queries is not None and row < len(given) <= key  # what was given has been read before the answer
        return not apart and not late and narrowed(kind, int(all_places[row]), int(all_places[key]))

    def weigh(scores: Tensor, row: int, keys: list[int]) -> Tensor:
        if all_owners[row] > 0:
            return scores.softmax(0)
        inside = torch.tensor([all_owners[key] > 0 for key in keys])
        return torch.where(inside, scores - math.log(count), scores).softmax(0)

    vectors = None
    if queries is not None:
        vectors = oracle_query_rows(model, [int(place[start + at]) for at in queries])
    shown = [ids[index] for index in written]
    return oracle_logits(model, shown, all_places, sees, len(shown), weigh, queries=vectors)[len(given) :]


@pytest.mark.parametrize("layers", ["plain", "NoPE"])
@settings(max_examples=4, deadline=None)
@given(question=questions, positions=st.sampled_from(POSITIONS))
def test_diffusion_equals_a_loop(layers: str, question: Question, positions: str) -> None:
    """Every row but those of phrasings sees everything, and phrasings all but each other."""
    model = net(layers, "diffusion")
    segments = [list(segment) for segment in question.segments]
    out = fuse(
        model, "diffusion", segments, prefix=list(question.prefix), suffix=list(question.suffix), max_new_tokens=3,
        positions=positions,
    )  # fmt: skip
    answer = [MASK] * 3
    for _, at, token_id, log_prob in events(out):
        logits = oracle(model, question, positions, answer, None)[at]
        logits[MASK] = -math.inf  # it is never chosen
        assert float(logits.log_softmax(-1)[token_id]) == pytest.approx(log_prob, abs=1e-9)
        answer[at] = token_id
    assert answer == out.token_ids


@pytest.mark.parametrize("layers", ["plain", "NoPE"])
@settings(max_examples=4, deadline=None)
@given(question=questions, positions=st.sampled_from(POSITIONS))
def test_the_first_tokens_in_any_order_equal_a_loop(layers: str, question: Question, positions: str) -> None:
    """Query rows at their places see all that was given; the most confident of them is written first."""
    model = net(layers, "confidence")
    segments = [list(segment) for segment in question.segments]
    out = fuse(
        model, "confidence", segments, prefix=list(question.prefix), suffix=list(question.suffix), max_new_tokens=3,
        positions=positions,
    )  # fmt: skip
    logits = oracle(model, question, positions, [-1, -1, -1], range(3))  # none of the three is written
    _, at, token_id, log_prob = events(out)[0]
    expected = logits.log_softmax(-1)
    assert (at, token_id) == divmod(int(expected.argmax()), expected.shape[1])
    assert float(expected[at, token_id]) == pytest.approx(log_prob, abs=1e-9)


def test_an_answer_sees_all_phrasings_and_phrasings_only_themselves() -> None:
    """A phrasing that changes changes the answer, and leaves the keys of the others alone before there is one."""
    model = net("plain", "any-order")
    one = fuse(model, "any-order", [[4, 5], [6, 7]], suffix=[8], max_new_tokens=1)
    for segments in ([[4, 9], [6, 7]], [[4, 5], [6, 9]]):
        other = fuse(model, "any-order", segments, suffix=[8], max_new_tokens=1)
        assert abs(events(one)[0][3] - events(other)[0][3]) > 1e-6


def test_longer_questions_than_texts() -> None:
    """Phrasings share positions, so all of them together may be longer than the network was trained on."""
    for name in ("any-order", "diffusion"):
        modes = (diffusion(MASK),) if name == "diffusion" else (LEFT_TO_RIGHT, ANY_ORDER)
        model = network(
            "plain", seed=2, modes=modes, eos_token_ids=(), vocab_size=40, max_position_embeddings=16
        ).double()
        out = fuse(model, name, [[4] * 10, [5] * 10, [6] * 10], suffix=[8], max_new_tokens=50)
        assert len(out.token_ids) == 16 - 11
        assert len(out.sequences[0]) == 30 + 1 + 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "max"}, "method 'max' is for answers from left to right, but this is one by 'diffusion': leave it"),
        ({"num_beams": 2}, "num_beams 2 is for answers from left to right"),
        ({"store": "folder"}, "store 'folder' is for answers from left to right"),
        ({"attention_share": True}, "attention_share is for answers from left to right"),
        ({"weights": "confidence"}, "weights 'confidence' is for answers from left to right"),
        ({"order": "sideways"}, "order is 'sideways': give"),
        ({"order": "left-to-right"}, "has no logits for the next token"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        anyorder.fuse(net("plain", "diffusion"), None, [[1], [2]], suffix=[3], **options)


def test_blocks_and_ways_that_a_network_lacks_are_refused() -> None:
    model = network("plain", seed=2, modes=(blocks(MASK, 2),), eos_token_ids=(), vocab_size=40)
    with pytest.raises(UserError, match="blocks are counted over a whole text, but phrasings share positions"):
        anyorder.fuse(model, None, [[1], [2]], suffix=[3], max_new_tokens=2)
    with pytest.raises(UserError, match="has no logits for the next token"):
        anyorder.stream_fused(net("plain", "diffusion"), None, [[1], [2]], order="left-to-right")


def test_drafts_are_refused() -> None:
    with pytest.raises(UserError, match="speculative decoding is not supported with fused phrasings: give the"):
        anyorder.fuse(net("plain", "any-order"), None, [[1], [2]], suffix=[3], order=Speculative(order=LeftToRight()))
