"""Beam search: batches, limits, stop conditions and the trace; the tokens themselves are in parity/test_beams.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyorder
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from tests.writers import END, TEXT, byte_tokenizer, chain, write_left_to_right

ENDS = (7, 21)


def network(**changes: Any) -> Llama:
    """Random float64 weights, wide enough that the most probable tokens differ clearly."""
    config = ModelConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.3,
        eos_token_ids=ENDS,
    )
    torch.manual_seed(1)
    return Llama(config.replace(**changes), backend="sdpa").double()


NETWORK = network()


@settings(deadline=None, max_examples=12)
@given(
    prompts=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=31), min_size=1, max_size=5),
    beams=st.integers(2, 4),
    penalty=st.sampled_from([1.0, 1.4]),
)
def test_a_ragged_batch_equals_one_by_one(prompts: list[list[int]], beams: int, penalty: float) -> None:
    """Also where some prompts leave less room than others, and where padding might be penalized."""
    options: dict[str, Any] = {
        "num_beams": beams,
        "max_new_tokens": 6,
        "sampling": Sampling(repetition_penalty=penalty),
    }
    batch = write_left_to_right(NETWORK, prompts, **options)
    for row, prompt in enumerate(prompts):
        alone = write_left_to_right(NETWORK, [prompt], sample_ids=[row], **options)
        assert alone.sequences == [batch.sequences[row]]
        assert alone.written == [batch.written[row]]
        assert alone.stopped == [batch.stopped[row]]
        mine = [event for event in batch.trace.events if event.sample_id == row]
        assert [event[:4] for event in alone.trace.events] == [event[:4] for event in mine]
        for one, other in zip(alone.trace.events, mine, strict=True):
            assert abs(one.log_prob - other.log_prob) < 1e-9


def test_a_better_text_than_the_greedy_one_is_found() -> None:
    model = network(eos_token_ids=())
    beams = write_left_to_right(model, [[1, 2, 3]], num_beams=4, max_new_tokens=8).trace
    greedy = anyorder.generate(model, None, [1, 2, 3], max_new_tokens=8).trace
    assert sum(event.log_prob for event in beams.events) > sum(event.log_prob for event in greedy.events) + 1e-3


def test_trace_tells_steps_positions_log_probs_and_passes() -> None:
    generation = write_left_to_right(NETWORK, [[1, 2, 3], [5]], num_beams=3, max_new_tokens=4, sample_ids=[4, 2])
    assert generation.trace.passes == 4
    assert [event.step for event in generation.trace.events] == sorted(event.step for event in generation.trace.events)
    for row, prompt, ids in zip([4, 2], [[1, 2, 3], [5]], generation.sequences, strict=True):
        events = [event for event in generation.trace.events if event.sample_id == row]
        assert [event.position for event in events] == list(range(len(prompt), len(ids)))
        assert [event.step for event in events] == list(range(len(events)))
        scores_LV = NETWORK(torch.tensor([ids])).logits[0].log_softmax(-1)
        for event in events:
            assert event.log_prob == pytest.approx(scores_LV[event.position - 1, event.token_id].item(), abs=1e-9)


def test_nobody_writes_beyond_the_longest_text() -> None:
    model = network(eos_token_ids=())
    generation = write_left_to_right(model, [[1] * 30, [2, 3], [4] * 31], num_beams=2, max_new_tokens=50)
    assert [len(ids) for ids in generation.sequences] == [32] * 3
    assert generation.stopped == ["length"] * 3


def test_a_stop_condition_ends_beams() -> None:
    model = network(eos_token_ids=())
    free = write_left_to_right(model, [[1, 2]], num_beams=3, max_new_tokens=8)
    asked: list[int] = []

    def stop(row: int, written: Sequence[int]) -> bool:
        asked.append(row)
        return len(written) == 3

    ended = write_left_to_right(model, [[1, 2], [3]], num_beams=3, max_new_tokens=8, stop=stop, sample_ids=[6, 9])
    assert [len(ids) for ids in ended.written] == [3, 3]
    assert ended.stopped == ["stop", "stop"]
    assert set(asked) == {6, 9}
    assert len(free.written[0]) == 8


def test_end_tokens_are_told_from_padding() -> None:
    for end in range(40):
        model = network(eos_token_ids=(end,))
        generation = write_left_to_right(model, [[1, 2], [3]], num_beams=2, max_new_tokens=5)
        for written, why in zip(generation.written, generation.stopped, strict=True):
            assert (written.index(end) + 1 if end in written else 5) == len(written)
            assert why == ("end" if written[-1] == end else "length")


def test_text_ends_before_a_stop_string() -> None:
    tokenizer = byte_tokenizer()
    model = chain(tokenizer, [*tokenizer(TEXT)["input_ids"], END])
    with torch.no_grad():
        model.lm_head.weight *= 20  # so sure of the next token that beams agree
    free = anyorder.generate(model, tokenizer, ["Once upon", "Once"], num_beams=2)
    assert free.text == [TEXT.removeprefix("Once upon"), TEXT.removeprefix("Once")]
    assert free.stopped == ["end", "end"]
    cut = anyorder.generate(model, tokenizer, ["Once upon", "Once"], num_beams=2, stop=["me the", "zzz"], batch_size=1)
    assert cut.text == [" a ti", " upon a ti"]
    assert cut.stopped == ["stop", "stop"]
    single = anyorder.generate(model, tokenizer, "Once", num_beams=2, max_new_tokens=2)
    assert (single.text, single.stopped) == (" upon a", ["length"])


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"max_new_tokens is 0: give a whole number above 0\."):
        write_left_to_right(NETWORK, [[1]], num_beams=2, max_new_tokens=0)
    with pytest.raises(UserError, match="prompt 1 has 0 tokens"):
        write_left_to_right(NETWORK, [[1], []], num_beams=2, max_new_tokens=1)
