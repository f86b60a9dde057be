"""Beam search for fused answers: plain beam search with one phrasing, cached as masked, a batch as one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import METHODS, Fusion
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.model.cache import Cache
from anyorder.model.llama import Llama
from tests.decoding.fusion.test_decoder import fusions, logits, net, questions
from tests.decoding.fusion.writing import write_fused
from tests.writers import write_left_to_right

ENDS = (7, 21)
LOOP = settings(max_examples=6, deadline=None)


def write_fused_by_beam_search(
    model: Llama, asked: list[Question], *, beams: int, repetition_penalty: float = 1.0, **options: Any
) -> Generation:
    return write_fused(model, asked, beams=beams, sampling=Sampling(repetition_penalty=repetition_penalty), **options)


@LOOP
@given(question=questions, beams=st.integers(2, 4), penalty=st.sampled_from([1.0, 1.4]))
def test_one_segment_is_plain_beam_search(question: Question, beams: int, penalty: float) -> None:
    model = net(eos_token_ids=ENDS)
    one = Question(segments=question.segments[:1], prefix=question.prefix, suffix=question.suffix)
    options: dict[str, Any] = {"max_new_tokens": 5}
    prompt, sampling = [*one.prefix, *one.segments[0], *one.suffix], Sampling(repetition_penalty=penalty)
    plain = write_left_to_right(model, [prompt], num_beams=beams, sampling=sampling, **options)
    fused = write_fused_by_beam_search(
        model, [one], fusion=Fusion(), beams=beams, repetition_penalty=penalty, **options
    )
    assert fused.sequences == plain.sequences
    assert fused.stopped == plain.stopped
    for mine, theirs in zip(fused.trace.events, plain.trace.events, strict=True):
        assert mine[:4] == theirs[:4]
        assert mine.log_prob == pytest.approx(theirs.log_prob, abs=1e-9)


@LOOP
@given(
    asked=st.lists(questions, min_size=1, max_size=3), fusion=fusions,
    method=st.sampled_from([method for method in METHODS if method not in ("vote", "contrast")]),
)  # fmt: skip
def test_cached_is_masked_and_a_batch_is_one_by_one(asked: list[Question], fusion: Fusion, method: str) -> None:
    model = net(eos_token_ids=ENDS, max_position_embeddings=40)
    fusion = Fusion(method=method, positions=fusion.positions, correction=fusion.correction)
    options: dict[str, Any] = {"fusion": fusion, "beams": 3, "max_new_tokens": 4}
    batch = write_fused_by_beam_search(model, asked, **options)
    assert batch.sequences == write_fused_by_beam_search(model, asked, use_cache=False, **options).sequences
    for row, question in enumerate(asked):
        alone = write_fused_by_beam_search(model, [question], sample_ids=[row], **options)
        assert alone.sequences == [batch.sequences[row]]
        mine = [event.log_prob for event in batch.trace.events if event.sample_id == row]
        assert [event.log_prob for event in alone.trace.events] == pytest.approx(mine, abs=1e-9)


def test_log_probs_are_those_of_the_fused_answer() -> None:
    """Read on along the answer that was found, greedy or not."""
    model = net(eos_token_ids=ENDS)
    question = Question(segments=((1, 2, 3), (4, 5)), prefix=(8, 9), suffix=(10,))
    found = write_fused_by_beam_search(model, [question], fusion=Fusion(), beams=4, max_new_tokens=5)
    for step, event in enumerate(found.trace.events):
        scores = logits(model, question, tuple(found.written[0][:step]))
        assert event.log_prob == pytest.approx(float(scores.log_softmax(-1)[event.token_id]), abs=1e-9)
    greedy = write_fused(model, [question], max_new_tokens=5)
    score = [sum(e.log_prob for e in one.trace.events) / len(one.trace.events) for one in (found, greedy)]
    assert score[0] >= score[1] - 1e-12


def test_only_what_was_written_is_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    question = Question(segments=((1, 2, 3), (4, 5)), prefix=(8, 9), suffix=(10,))
    starts: list[tuple[int, int]] = []
    reorder, gather = Cache.reorder, Cache.gather
    gathered: list[int] = []

    def watched(self: Cache, parents: torch.Tensor, start: int) -> None:
        starts.append((start, self.capacity))
        reorder(self, parents, start)

    def counted(self: Cache, *args: Any, **kwargs: Any) -> Cache:
        gathered.append(1)
        return gather(self, *args, **kwargs)

    monkeypatch.setattr(Cache, "reorder", watched)
    monkeypatch.setattr(Cache, "gather", counted)
    write_fused_by_beam_search(model, [question], fusion=Fusion(), beams=3, max_new_tokens=4)
    assert set(starts) == {(8, 12)}
    assert len(starts) == 4
    assert len(gathered) == 3  # rows of segments, joined questions, beams


def test_stop_conditions_and_the_transformers_face() -> None:
    model = net()
    question = Question(segments=((1, 2, 3), (4, 5)), suffix=(10,))
    options: dict[str, Any] = {"fusion": Fusion(), "beams": 3, "max_new_tokens": 6}
    stopped = write_fused_by_beam_search(model, [question], stop=lambda row, ids: len(ids) == 2, **options)
    assert stopped.stopped == ["stop"]
    assert len(stopped.written[0]) == 2
    face = AnyOrderForCausalLM.of(model)
    assert write_fused_by_beam_search(face, [question], **options).sequences == (
        write_fused_by_beam_search(model, [question], **options).sequences
    )


def test_votes_have_no_beams() -> None:
    with pytest.raises(UserError, match="num_beams is 2 with the method 'vote', which counts answers: leave out one"):
        write_fused_by_beam_search(
            net(), [Question(segments=((1,),))], fusion=Fusion(method="vote"), beams=2, max_new_tokens=2
        )
