"""Fusion by attention: the identities that prove it, and equality with plain loops, to 1e-9 in float64 and better."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyorder
from anyorder.decoding.fusion.decoder import answer_to, fusion_reader
from anyorder.decoding.fusion.layout import POSITIONS, Question
from anyorder.decoding.fusion.method import METHODS, Fusion
from anyorder.decoding.fusion.reader import FusedReader, Prefiller, masked_pass
from anyorder.decoding.fusion.weighting import APE, CORRECTIONS
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary
from tests.decoding.fusion.writing import write_fused
from tests.decoding.fusion_oracle import fused_logits, single_logits
from tests.model.networks import LAYERS, VOCABULARY, network
from tests.writers import write_left_to_right

LOOP = settings(max_examples=12, deadline=None)

ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5).map(tuple)
questions = st.builds(
    lambda segments, prefix, suffix: Question(segments=segments, prefix=prefix, suffix=suffix),
    st.lists(ids, min_size=1, max_size=4).map(tuple),
    ids | st.just(()),
    ids,
)
fusions = st.builds(
    lambda positions, correction: Fusion(positions=positions, correction=correction),
    st.sampled_from(POSITIONS),
    st.sampled_from(CORRECTIONS),
)


def net(layers: str = "plain", backend: str = "auto", **changes: Any) -> Llama:
    return network(layers, backend, **changes).double()


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Llama:
    """stories260K, trained weights, in float64."""
    return anyorder.load(shared_data / "stories260K" / "stories260K.bin", dtype="float64", device="cpu")[0]


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[int, ...]]:
    """Token ids that have the lengths of a question: prefix, phrasing, suffix."""
    drawn = torch.randint(3, 512, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    return {"prefix": (1, *drawn[:16]), "segment": tuple(drawn[16:25]), "suffix": tuple(drawn[25:28])}


@torch.no_grad()
def logits(model: Llama, question: Question, answer: tuple[int, ...] = (), **options: Any) -> torch.Tensor:
    """Of the token after the answer so far, which is read token by token."""
    use_cache, fusion = options.pop("use_cache", True), Fusion(**options)
    text = answer_to(question, fusion, len(answer) + 1, 0, torch.Generator())
    reader = fusion_reader(model, {text: question}, fusion, use_cache)
    out = reader.logits({text: text.queries()})
    for token in answer:
        text.tokens.append(token)
        out = reader.logits({text: text.queries()})
    return out[0]


def shapes_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Batch and length of each pass from now on."""
    rows: list[tuple[int, int]] = []
    hidden = Llama.hidden

    def watched(self: Llama, input_ids_BR: torch.Tensor, *others: Any) -> torch.Tensor:
        rows.append((input_ids_BR.shape[0], input_ids_BR.shape[1]))
        return hidden(self, input_ids_BR, *others)

    monkeypatch.setattr(Llama, "hidden", watched)
    return rows


# ---- the identity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 16])
@pytest.mark.parametrize("answer", [(), (300, 45, 7)])
def test_identical_segments_are_the_single_prompt(
    stories: Llama, parts: dict[str, tuple[int, ...]], count: int, answer: tuple[int, ...]
) -> None:
    question = Question(prefix=parts["prefix"], segments=(parts["segment"],) * count, suffix=parts["suffix"])
    plain = stories(torch.tensor([[*parts["prefix"], *parts["segment"], *parts["suffix"], *answer]])).logits[0, -1]
    for method in METHODS[:-1]:
        if method != "contrast":
            fused = logits(stories, question, answer, method=method)
            gap = fused.log_softmax(-1) - plain.log_softmax(-1)
            assert float(gap.detach().abs().max()) < 1e-12, method


def test_without_the_correction_or_the_positions_they_are_not(
    stories: Llama, parts: dict[str, tuple[int, ...]]
) -> None:
    """So the identity holds because of both."""
    question = Question(prefix=parts["prefix"], segments=(parts["segment"],) * 5, suffix=parts["suffix"])
    plain = stories(torch.tensor([[*parts["prefix"], *parts["segment"], *parts["suffix"]]])).logits[0, -1]
    for options in ({"correction": "none"}, {"positions": "running"}):
        assert float((logits(stories, question, **options) - plain).detach().abs().max()) > 0.1


@pytest.mark.parametrize("positions", ["shared", "right", "spread"])
@pytest.mark.parametrize("correction", ["1/N", "length"])
def test_copies_of_one_length_may_be_laid_out_otherwise(
    stories: Llama, parts: dict[str, tuple[int, ...]], positions: str, correction: str
) -> None:
    question = Question(prefix=parts["prefix"], segments=(parts["segment"],) * 3, suffix=parts["suffix"])
    plain = stories(torch.tensor([[*parts["prefix"], *parts["segment"], *parts["suffix"]]])).logits[0, -1]
    gap = logits(stories, question, positions=positions, correction=correction) - plain
    assert float(gap.detach().abs().max()) < 1e-12


def test_identical_segments_without_a_suffix_too(stories: Llama, parts: dict[str, tuple[int, ...]]) -> None:
    """The first token is chosen by the mean of what each segment scores, and later ones see all segments."""
    question = Question(prefix=parts["prefix"], segments=(parts["segment"],) * 4)
    for answer in ((), (17, 4)):
        plain = stories(torch.tensor([[*parts["prefix"], *parts["segment"], *answer]])).logits[0, -1]
        gap = logits(stories, question, answer).log_softmax(-1) - plain.log_softmax(-1)
        assert float(gap.detach().abs().max()) < 1e-12


# ---- further identities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(question=questions, fusion=fusions)
def test_one_segment_is_plain_generation(layers: str, question: Question, fusion: Fusion) -> None:
    model = net(layers)
    one = Question(segments=question.segments[:1], prefix=question.prefix, suffix=question.suffix)
    prompt = [*one.prefix, *one.segments[0], *one.suffix]
    plain = write_left_to_right(model, [prompt], max_new_tokens=4)
    fused = write_fused(model, [one], fusion=fusion, max_new_tokens=4)
    assert fused.sequences == plain.sequences
    assert fused.stopped == plain.stopped
    for ours, theirs in zip(fused.trace.events, plain.trace.events, strict=True):
        assert ours[:4] == theirs[:4]
        assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-12)


@LOOP
@given(question=questions, order=st.randoms(), method=st.sampled_from(METHODS[:-1]))
def test_the_order_of_segments_means_nothing_under_shared_positions(
    question: Question, order: Any, method: str
) -> None:
    model = net()
    swapped = list(question.segments)
    order.shuffle(swapped)
    other = Question(segments=tuple(swapped), prefix=question.prefix, suffix=question.suffix)
    for answer in ((), (3, 9)):
        one, two = (logits(model, asked, answer, method=method) for asked in (question, other))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@LOOP
@given(question=questions, positions=st.sampled_from(POSITIONS), answer=st.just(()) | ids)
def test_ape_of_one_and_one_is_no_correction(question: Question, positions: str, answer: tuple[int, ...]) -> None:
    model = net()
    tempered = logits(model, question, answer, positions=positions, correction="ape:1,1")
    plain = logits(model, question, answer, positions=positions, correction="none")
    torch.testing.assert_close(tempered, plain, rtol=0, atol=1e-12)
    assert Fusion(correction="ape:0.9,0.8").correction == APE(0.9, 0.8)


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(question=questions, other=ids, positions=st.sampled_from(["shared", "right", "spread"]), which=st.integers(0, 3))
def test_a_segment_that_changes_leaves_the_keys_of_the_others_alone(
    layers: str, question: Question, other: tuple[int, ...], positions: str, which: int
) -> None:
    model = net(layers)
    index = which % len(question.segments)
    length = len(question.segments[index])
    changed = (other * length)[:length]
    segments = (*question.segments[:index], changed, *question.segments[index + 1 :])
    caches = [
        Prefiller(model).read_segments([asked.layout(positions)], 0)[0]
        for asked in (question, Question(segments=segments, prefix=question.prefix, suffix=question.suffix))
    ]
    layout = question.layout(positions)
    start, end = layout.segment_spans[index]
    for one, two in zip(caches[0].layers, caches[1].layers, strict=True):
        for mine, theirs in ((one.keys, two.keys), (one.values, two.values)):
            kept = [slot for slot in range(layout.suffix_start) if not start <= slot < end]
            torch.testing.assert_close(mine[:, kept], theirs[:, kept], rtol=0, atol=1e-13)
    if changed != question.segments[index]:
        assert not torch.equal(caches[0].layers[0].values[:, start:end], caches[1].layers[0].values[:, start:end])


# ---- against plain loops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(
    question=questions, fusion=fusions, answer=st.just(()) | ids,
    weights=st.none() | st.lists(st.floats(0.1, 3), min_size=4, max_size=4),
)  # fmt: skip
def test_equals_a_loop(
    layers: str, question: Question, fusion: Fusion, answer: tuple[int, ...], weights: list[float] | None
) -> None:
    model = net(layers)
    if weights is not None:
        weights = weights[: len(question.segments)]
        question = Question(
            segments=question.segments, prefix=question.prefix, suffix=question.suffix, weights=tuple(weights)
        )
    expected = fused_logits(model, question, fusion.positions, str(fusion.correction), answer)
    out = logits(model, question, answer, positions=fusion.positions, correction=fusion.correction)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


@LOOP
@given(
    question=questions, positions=st.sampled_from(POSITIONS), answer=st.just(()) | ids,
    temperature=st.floats(0.3, 2), scale=st.floats(0.3, 2),
)  # fmt: skip
def test_ape_equals_a_loop(
    question: Question, positions: str, answer: tuple[int, ...], temperature: float, scale: float
) -> None:
    model = net()
    expected = fused_logits(model, question, positions, "none", answer, (temperature, scale))
    out = logits(model, question, answer, positions=positions, correction=APE(temperature, scale))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


def test_without_a_suffix_the_first_token_is_the_mean_of_what_segments_score() -> None:
    model = net()
    question = Question(segments=((1, 2, 3), (4,), (5, 6)), prefix=(7, 8), weights=(1.0, 2.0, 5.0))
    singles = torch.stack([single_logits(model, [*question.prefix, *segment]) for segment in question.segments])
    expected = (torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64) / 8 * singles.log_softmax(-1)).sum(0)
    torch.testing.assert_close(logits(model, question), expected, rtol=0, atol=1e-9)
    later = logits(model, question, (9,))
    torch.testing.assert_close(later, fused_logits(model, question, "shared", "1/N", (9,)), rtol=0, atol=1e-9)


# ---- cached, masked, batched ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(
    asked=st.lists(questions, min_size=1, max_size=3), fusion=fusions | st.just(Fusion(correction=APE(0.8, 1.3))),
    method=st.sampled_from(METHODS),
)  # fmt: skip
def test_cached_is_masked_and_a_batch_is_one_by_one(
    layers: str, asked: list[Question], fusion: Fusion, method: str
) -> None:
    """Ragged numbers of phrasings, ragged lengths, several prefixes; the masked way reads one sequence per question."""
    model = net(layers, "sdpa", eos_token_ids=(5, 6))
    fusion = Fusion(method=method, positions=fusion.positions, correction=fusion.correction)
    if method == "contrast":
        fusion = Fusion(method="lowest-entropy")
    options: dict[str, Any] = {"fusion": fusion, "max_new_tokens": 4}
    batch = write_fused(model, asked, **options)
    masked = write_fused(model, asked, use_cache=False, **options)
    alone = [write_fused(model, [question], sample_ids=[row], **options) for row, question in enumerate(asked)]
    for other in (masked.trace.events, sorted(event for one in alone for event in one.trace.events)):
        events = sorted(batch.trace.events)
        assert [event[:4] for event in events] == [event[:4] for event in sorted(other)]
        for mine, theirs in zip(events, sorted(other), strict=True):
            assert mine.log_prob == pytest.approx(theirs.log_prob, abs=1e-9)
    assert batch.sequences == masked.sequences == [one.sequences[0] for one in alone]
    assert batch.stopped == masked.stopped == [one.stopped[0] for one in alone]


@pytest.mark.slow  # FlexAttention compiles
def test_flex_reads_the_same_masked_sequence() -> None:
    question = Question(segments=((1, 2, 3), (4,), (5, 6)), prefix=(7, 8), suffix=(9, 10))
    sdpa, flex = (network("plain", name, initializer_range=0.2) for name in ("sdpa", "flex"))
    for use_cache in (True, False):
        one, two = (logits(model, question, (3,), use_cache=use_cache) for model in (sdpa, flex))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_draws_depend_on_the_seed_and_the_number_of_the_question_alone() -> None:
    model = net()
    asked = [Question(segments=((1, 2), (3,)), suffix=(4,)), Question(segments=((5,), (6, 7), (8,)), suffix=(9,))]
    for method in METHODS:
        if method == "contrast":
            continue
        options: dict[str, Any] = {"max_new_tokens": 8, "fusion": Fusion(method=method)}
        sampling = Sampling(temperature=1.5, seed=4)
        batch = write_fused(model, asked, sampling=sampling, **options)
        second = write_fused(model, asked[1:], sampling=sampling, sample_ids=[1], **options)
        assert batch.written[1] == second.written[0]
        other = write_fused(model, asked, sampling=Sampling(temperature=1.5, seed=5), **options)
        assert batch.written != other.written


def test_the_cache_grows_with_prefix_and_sum_of_segments() -> None:
    """Not with number of segments times prefix, as naive batches do; and answers append one key a token."""
    model = net()
    prefix, suffix, answer = tuple(range(20)), (1, 2), 5
    for count in (1, 4, 9):
        question = Question(segments=((3, 4, 5),) * count, prefix=prefix, suffix=suffix)
        text = answer_to(question, Fusion(), answer, 0, torch.Generator())
        reader = FusedReader(model, {text: question}, Fusion())
        reader.logits({text: text.queries()})
        assert reader.cache is not None
        assert reader.cache.extent == len(prefix) + 3 * count + len(suffix)
        assert reader.cache.capacity == reader.cache.extent + answer
        for token in range(answer):
            text.tokens.append(token)
            reader.logits({text: text.queries()})
        assert reader.cache.extent == reader.cache.capacity


def test_a_prefix_is_read_once_for_all_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    rows = shapes_read(monkeypatch)
    asked = [Question(segments=((1, 2), (3,)), prefix=(9,) * 7, suffix=(number,)) for number in range(3)]
    generation = write_fused(model, asked, max_new_tokens=2)
    assert rows == [(1, 7), (6, 2), (3, 1), (3, 1)]
    assert generation.trace.passes == 4


def test_equal_questions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    asked = [Question(segments=((1, 2), (number,)), suffix=(4,)) for number in (3, 5, 3)]
    alone = [
        write_fused(model, [question], sample_ids=[row], max_new_tokens=3).written[0]
        for row, question in enumerate(asked)
    ]
    rows = shapes_read(monkeypatch)
    assert write_fused(model, asked, max_new_tokens=3).written == alone
    assert rows == [(4, 2), (2, 1), (3, 1), (3, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_it_takes_no_gradient(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enabled: list[bool] = []
    logits = Llama.logits

    def watched(self: Llama, hidden: torch.Tensor) -> torch.Tensor:
        enabled.append(torch.is_grad_enabled())
        return logits(self, hidden)

    monkeypatch.setattr(Llama, "logits", watched)
    asked = Question(segments=((1,), (2,)), suffix=(3,))
    write_fused(net(), [asked], fusion=Fusion(method=method), max_new_tokens=2)
    assert enabled
    assert not any(enabled)


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ({"segments": ()}, {}, "the question has 0 phrasings: give at least one"),
        ({"segments": ((1,), (99,))}, {}, "the question has the token id 99: give ids from 0 to 30"),
        ({"segments": ((1,), (2,)), "weights": (1.0,)}, {}, r"weights of the question are \[1.0\]: give a number"),
        ({"segments": ((1,), (2,)), "weights": (1.0, 0.0)}, {}, "give a number above 0 for each of its 2 phrasings"),
        ({"segments": ((1,), (2,)), "weights": (1.0, math.nan)}, {}, "give a number above 0 for each"),
        (
            {"segments": ((1,), (2,)), "weights": (1.0, 2.0)}, {"method": "max"},
            "weights are given with the method 'max', which asks who is surest: leave them out, or choose one of",
        ),
        ({"segments": ((1,),)}, {"method": "contrast"}, "method 'contrast' also asks without any phrasing, and the"),
        (
            {"segments": ((1,), (2,) * 12), "prefix": (1,) * 3, "suffix": (1,)}, {},
            r"the question reaches over 16 positions \(the prefix 3, the longest phrasing 12, the suffix 1\) and the "
            "network over 16, one of which is for the answer: shorten the longest phrasing by 1",
        ),
        (
            {"segments": ((1,) * 6, (2,) * 6), "prefix": (1,) * 6}, {"positions": "running"},
            r"over 18 positions \(the prefix 6, all phrasings 12, the suffix 0\) .*: shorten all phrasings by 3, or "
            "take the positions 'shared'",
        ),
        ({"segments": ((1,),), "prefix": (1,) * 20}, {}, "shorten the prefix by 6"),
    ],
)  # fmt: skip
def test_mistakes(question: dict[str, Any], options: dict[str, Any], message: str) -> None:
    model = net(max_position_embeddings=16)
    with pytest.raises(UserError, match=message):
        write_fused(model, [Question(**question)], fusion=Fusion(**options), max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mean"}, "method is 'mean': choose one of attention, logit-mean, probability-mean, max, lowest-"),
        ({"positions": "left"}, "positions is 'left': choose one of shared, running, right, spread"),
        ({"correction": "N"}, "correction is 'N': choose one of 1/N, none, length, or ape:TEMPERATURE,SCALE"),
        ({"correction": "ape:1"}, "correction is 'ape:1': choose one of"),
        ({"correction": "ape:0,1"}, "the temperature of the correction 'ape' is 0.0: give a number above 0"),
    ],
)
def test_options_that_are_unknown(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Fusion(**options)


def test_mistakes_name_the_question() -> None:
    model = net()
    asked = [Question(segments=((1,),)), Question(segments=())]
    with pytest.raises(UserError, match="question 7 has 0 phrasings"):
        write_fused(model, asked, max_new_tokens=2, sample_ids=[3, 7])
    with pytest.raises(UserError, match=r"sample_ids is \[1, 1\] for 2 questions"):
        write_fused(model, asked, max_new_tokens=2, sample_ids=[1, 1])
    with pytest.raises(UserError, match="there are 0 questions"):
        write_fused(model, [], max_new_tokens=2)
    with pytest.raises(UserError, match="max_new_tokens is 0: give a whole number above 0"):
        write_fused(model, asked[:1], max_new_tokens=0)


def test_answers_end_where_the_trained_length_does() -> None:
    model = net(max_position_embeddings=16)
    question = Question(segments=((1,) * 10, (2,) * 12), prefix=(3,))
    generation = write_fused(model, [question], max_new_tokens=50)
    assert len(generation.written[0]) == 16 - 13
    assert generation.stopped == ["length"]
    dynamic = net(rotary=DynamicRotary(theta=100.0, factor=4.0, original_max_position_embeddings=15))
    assert len(write_fused(dynamic, [question], max_new_tokens=50).written[0]) == 15 - 13


def test_the_masked_pass_is_that_of_segments() -> None:
    """What the guide draws is what the network reads."""
    model = net()
    question = Question(segments=((1, 2, 3), (4,)), prefix=(7, 8), suffix=(9, 10))
    with torch.no_grad():
        rows, views = masked_pass(model, [question], Fusion(correction="none"), [()])
        out = model.logits(model.hidden(rows.ids, views))[0, -1]
    torch.testing.assert_close(out, fused_logits(model, question, "shared", "none"), rtol=0, atol=1e-9)
