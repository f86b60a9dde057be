"""Writing from left to right: cached, uncached, batched, alone and padded agree."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from anyorder.utils.ragged import pad_right
from anyorder.visibility import causal
from tests.writers import write_left_to_right

END = 7
PROMPTS = [[1, 2, 3], [4], [5, 6, 8, 9, 10, 11, 12], [13, 14]]
KINDS = {
    "plain": (LayerKind(), LayerKind()),
    "NoPE": (LayerKind(), LayerKind(rotary=False)),
    "window": (LayerKind(window=5), LayerKind()),
    "chunk": (LayerKind(chunk=4), LayerKind()),
}


@functools.cache
def network(kinds: str = "plain", backend: str = "eager") -> Llama:
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
        eos_token_ids=(END,),
        layers=KINDS[kinds],
    )
    torch.manual_seed(1)
    return Llama(config, backend=backend).double()


def with_ends(*end_token_ids: int) -> Llama:
    """The plain network with other end tokens, or none."""
    model = Llama(network().config.replace(eos_token_ids=end_token_ids), backend="eager").double()
    model.load_state_dict(network().state_dict())
    return model


def same(left: Generation, right: Generation) -> None:
    """The same tokens in the same steps, and log-probabilities to 1e-9."""
    assert left.sequences == right.sequences
    assert left.written == right.written
    assert left.stopped == right.stopped
    assert [event[:4] for event in left.trace.events] == [event[:4] for event in right.trace.events]
    for one, other in zip(left.trace.events, right.trace.events, strict=True):
        assert abs(one.log_prob - other.log_prob) < 1e-9


def row_of(generation: Generation, row: int) -> Generation:
    """What a generation says of one row."""
    events = tuple(event for event in generation.trace.events if event.sample_id == row)
    trace = generation.trace
    return Generation(
        [generation.sequences[row]],
        [generation.written[row]],
        [generation.stopped[row]],
        type(trace)(events, trace.passes, trace.seconds, trace.end_token_ids),
    )


SAMPLINGS = [Sampling(), Sampling(temperature=1.2, top_k=30, top_p=0.95, seed=4)]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_cached_equals_uncached_and_a_batch_equals_one_by_one(kinds: str, backend: str, sampling: Sampling) -> None:
    model = network(kinds, backend)
    batch = write_left_to_right(model, PROMPTS, max_new_tokens=20, sampling=sampling)
    same(batch, write_left_to_right(model, PROMPTS, max_new_tokens=20, sampling=sampling, use_cache=False))
    for row, prompt in enumerate(PROMPTS):
        alone = write_left_to_right(model, [prompt], max_new_tokens=20, sampling=sampling, sample_ids=[row])
        same(alone, row_of(batch, row))


@settings(deadline=None, max_examples=25)
@given(
    prompts=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=31), min_size=1, max_size=5),
    temperature=st.sampled_from([0.0, 0.8]),
    seed=st.integers(0, 99),
)
def test_ragged_prompts(prompts: list[list[int]], temperature: float, seed: int) -> None:
    sampling = Sampling(temperature=temperature, seed=seed)
    batch = write_left_to_right(network(), prompts, max_new_tokens=6, sampling=sampling)
    same(batch, write_left_to_right(network(), prompts, max_new_tokens=6, sampling=sampling, use_cache=False))
    for row, prompt in enumerate(prompts):
        alone = write_left_to_right(network(), [prompt], max_new_tokens=6, sampling=sampling, sample_ids=[row])
        same(alone, row_of(batch, row))


def test_greedy_is_the_argmax_of_a_plain_loop() -> None:
    model = network()
    ids = list(PROMPTS[0])
    log_probs = []
    for _ in range(20):
        scores_V = model(torch.tensor([ids])).logits[0, -1].detach().log_softmax(-1)
        ids.append(int(scores_V.argmax()))
        log_probs.append(float(scores_V.max()))
        if ids[-1] == END:
            break
    generation = write_left_to_right(model, [PROMPTS[0]], max_new_tokens=20)
    assert generation.sequences == [ids]
    assert [event.log_prob for event in generation.trace.events] == pytest.approx(log_probs, abs=1e-9)


@pytest.mark.parametrize("pads", [0, 1, 9])
def test_left_padded_equals_unpadded(pads: int) -> None:
    """The cache takes prompts that are padded on the left, and then writes what the unpadded ones write."""
    model = network()
    lengths = [len(prompt) for prompt in PROMPTS]
    width = max(lengths) + pads
    ids_BR = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    valid_BR = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    position_BR = (valid_BR.cumsum(1) - 1).clamp(min=0)
    cache = model.new_cache(len(PROMPTS), 32)
    sequences = [list(prompt) for prompt in PROMPTS]
    log_probs = []
    with torch.no_grad():
        for _ in range(8):
            views = model.prepare(causal(), {"position": position_BR}, valid=valid_BR, cache=cache)
            scores_BV = model.logits(model.hidden(ids_BR, views, cache)[:, -1]).log_softmax(-1)
            log_probs += scores_BV.amax(-1).tolist()
            for ids, token_id in zip(sequences, scores_BV.argmax(-1).tolist(), strict=True):
                ids.append(token_id)
            ids_BR, position_BR, valid_BR = pad_right(
                [ids[-1:] for ids in sequences], [len(ids) - 1 for ids in sequences], torch.device("cpu")
            )
    generation = write_left_to_right(with_ends(), PROMPTS, max_new_tokens=8)
    assert generation.sequences == sequences
    assert [event.log_prob for event in generation.trace.events] == pytest.approx(log_probs, abs=1e-9)


def test_logits_are_made_for_one_row_of_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    shapes: list[Sequence[int]] = []
    project = model.logits

    def counting(hidden: Tensor) -> Tensor:
        shapes.append(hidden.shape)
        return project(hidden)

    monkeypatch.setattr(model, "logits", counting)
    write_left_to_right(model, PROMPTS, max_new_tokens=3)
    assert all(len(shape) == 2 and shape[0] <= len(PROMPTS) for shape in shapes)


def test_a_cached_step_reads_one_token_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    widths: list[int] = []
    run = model.hidden

    def counting(ids_BR: Tensor, *views: Any) -> Tensor:
        widths.append(ids_BR.shape[1])
        return run(ids_BR, *views)

    monkeypatch.setattr(model, "hidden", counting)
    write_left_to_right(model, PROMPTS, max_new_tokens=4)
    assert widths == [7, 1, 1, 1]


def test_trace_tells_steps_positions_and_passes() -> None:
    trace = write_left_to_right(network(), PROMPTS[:2], max_new_tokens=3, sample_ids=[5, 9]).trace
    where = [(event.step, event.sample_id, event.position) for event in trace.events]
    assert where == [(0, 5, 3), (0, 9, 1), (1, 5, 4), (1, 9, 2), (2, 5, 5), (2, 9, 3)]
    assert trace.passes == 3
    assert trace.tokens == 6
    assert trace.seconds > 0


def test_end_token_ends_its_row_only_and_stays() -> None:
    free = write_left_to_right(with_ends(), PROMPTS, max_new_tokens=10)
    end = free.written[2][4]
    ended = write_left_to_right(with_ends(39, end), PROMPTS, max_new_tokens=10)
    for row, written in enumerate(free.written):
        cut = written[: written.index(end) + 1] if end in written else written
        assert ended.written[row] == cut
        assert ended.stopped[row] == ("end" if end in written else "length")
    assert ended.stopped[2] == "end"
    assert ended.stopped.count("length") > 0
    assert ended.trace.tokens == sum(map(len, ended.written)) - ended.stopped.count("end")


def test_stop_condition_gets_the_row_and_what_was_written() -> None:
    asked: list[tuple[int, list[int]]] = []

    def stop(row: int, written: Sequence[int]) -> bool:
        asked.append((row, list(written)))
        return row == 8 and len(written) == 2

    generation = write_left_to_right(network(), PROMPTS[:2], max_new_tokens=4, stop=stop, sample_ids=[3, 8])
    assert generation.stopped == ["length", "stop"]
    assert [len(written) for written in generation.written] == [4, 2]
    assert asked[0] == (3, generation.written[0][:1])
    assert asked[-1] == (3, generation.written[0])
    assert sum(row == 8 for row, _ in asked) == 2


def test_nobody_writes_beyond_the_trained_length() -> None:
    generation = write_left_to_right(with_ends(), [[1] * 30, [2, 3]], max_new_tokens=50)
    assert [len(ids) for ids in generation.sequences] == [32, 32]
    assert generation.stopped == ["length", "length"]


def test_steps_come_one_by_one() -> None:
    """Streaming: the first step is there before the second is computed, and mistakes come before the first."""
    steps = left_to_right_steps(
        network(), PROMPTS, max_new_tokens=5, sampling=Sampling(), stop=None, use_cache=True, sample_ids=range(4)
    )
    assert [event.sample_id for event in next(steps).written] == [0, 1, 2, 3]
    assert torch.is_grad_enabled(), "the decoder's no_grad must not leak out between steps"
    assert len(list(steps)) == 4
    with pytest.raises(UserError, match="max_new_tokens"):
        left_to_right_steps(
            network(), PROMPTS, max_new_tokens=0, sampling=Sampling(), stop=None, use_cache=True, sample_ids=range(4)
        )


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "there are 0 prompts: give at least one."),
        ([[1], []], {}, "prompt 1 has 0 tokens: give at least one, such as the token that begins a text."),
        (
            [[1, 40]],
            {},
            "prompt 0 has the token id 40: give ids from 0 to 39, from the tokenizer of this network.",
        ),
        ([[1], [-1]], {}, "prompt 1 has the token id -1: give ids from 0 to 39, from the tokenizer of this network."),
        (
            [[1] * 32],
            {},
            "prompt 0 has 32 tokens, and the network was trained on 32: "
            "shorten it to at most 31, which leaves room to write.",
        ),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number above 0."),
        ([[1]], {"sample_ids": [0, 1]}, "sample_ids is [0, 1] for 1 prompts: give each prompt a number of its own."),
        (
            [[1], [2]],
            {"sample_ids": [3, 3]},
            "sample_ids is [3, 3] for 2 prompts: give each prompt a number of its own.",
        ),
    ],
)
def test_mistakes_are_named(prompts: list[list[int]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        write_left_to_right(network(), prompts, **{"max_new_tokens": 4, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_scores_that_are_not_numbers_are_named(sampling: Sampling) -> None:
    model = Llama(network().config, backend="eager")
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    message = "the network's scores for row 0 are NaN: check its weights, or load it in float32."
    with pytest.raises(UserError) as caught:
        write_left_to_right(model, [[1]], max_new_tokens=1, sampling=sampling)
    assert str(caught.value) == message
