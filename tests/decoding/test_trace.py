"""The record of a generation."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from anyorder.decoding.canvas import BLANK
from anyorder.decoding.trace import Generation, Recorder, Step, Trace, Written, collect
from anyorder.errors import UserError

TRACE = Trace(
    events=(
        Written(0, 0, 3, 7, -0.1),
        Written(0, 0, 5, 8, -1 / 3),
        Written(1, 0, 4, 2, -1e-17),
        Written(1, 2, 1, 7, 0.0),
    ),
    passes=3,
    seconds=0.25,
    end_token_ids=(2,),
)


def test_json_round_trip_is_exact() -> None:
    assert Trace.from_json(TRACE.to_json()) == TRACE
    assert isinstance(Trace.from_json(TRACE.to_json()).events[0], Written)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fields": ["step"], "events": []}', TRACE.to_json()[:-9]])
def test_text_that_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"the text is no trace .*: give what Trace\.to_json wrote\."):
        Trace.from_json(text)


def test_end_tokens_and_what_stands_behind_them_are_not_counted() -> None:
    assert TRACE.tokens == 2
    assert TRACE.tokens_per_second == 8
    assert TRACE.summary() == "2 tokens in 3 forward passes and 0.25 s (8.0 tokens/s)"


def test_a_text_ends_before_the_first_position_that_was_never_written() -> None:
    steps = [Step((Written(0, 0, 4, 9, -0.1), Written(0, 0, 1, 8, -0.2)), {0: "end"})]
    for prompt in ([5], [5, BLANK, 6, BLANK, BLANK]):
        generation = collect(steps, prompts=[prompt], sample_ids=[0], end_token_ids=(8,))
        assert generation.written == [[8]]
        assert generation.sequences == [[5, 8, *prompt[2:3]]]


def test_no_time_gives_no_speed() -> None:
    assert Trace(TRACE.events, 3, 0.0).tokens_per_second == 0


def test_an_edited_position_counts_once_and_the_later_token_stands() -> None:
    steps = [
        Step((Written(0, 4, 2, 7, -0.1), Written(0, 4, 1, 8, -0.2)), passes=2),
        Step((Written(1, 4, 2, 9, -0.3),), {4: "length"}),
    ]
    generation = collect(steps, prompts=[[5]], sample_ids=[4], end_token_ids=(2,))
    assert generation.written == [[8, 9]]
    assert generation.sequences == [[5, 8, 9]]
    assert generation.stopped == ["length"]
    assert generation.trace.tokens == 2
    assert generation.trace.passes == 3
    assert len(generation.trace.events) == 3


def test_a_recorder_hands_on_each_step_before_the_next_is_taken() -> None:
    taken: list[int] = []

    def steps() -> Iterator[Step]:
        for number in range(3):
            taken.append(number)
            yield Step((Written(number, 0, 1 + number, 8, -0.1),), {0: "length"} if number == 2 else {})

    recorder = Recorder(prompts=[[5]], sample_ids=[0], end_token_ids=(2,))
    for number, step in enumerate(recorder.watch(steps())):
        assert taken == list(range(number + 1))
        assert step.written[0].step == number
        time.sleep(0.1)
    generation = recorder.generation()
    assert generation.sequences == [[5, 8, 8, 8]]
    assert generation.trace.passes == 3
    assert 0 < generation.trace.seconds < 0.1, "the reader's time does not count"


def test_gaps_are_filled_in_place() -> None:
    """Positions may lie between those of the prompt's tokens only if the prompt holds a token there to replace."""
    steps = [Step((Written(0, 0, 1, 8, -0.1),), {0: "length"})]
    assert collect(steps, prompts=[[5, 0, 6]], sample_ids=[0], end_token_ids=()).sequences == [[5, 8, 6]]


def test_join() -> None:
    generations = [
        collect([Step((Written(0, row, 1, 9, -0.5),), {row: "stop"})], [[row]], [row], (2,)) for row in range(3)
    ]
    joined = Generation.join(generations)
    assert joined.sequences == [[0, 9], [1, 9], [2, 9]]
    assert joined.stopped == ["stop"] * 3
    assert joined.trace.passes == 3
    assert [event.sample_id for event in joined.trace.events] == [0, 1, 2]
    assert joined.trace.seconds == sum(generation.trace.seconds for generation in generations)
    assert joined.trace.end_token_ids == (2,)
