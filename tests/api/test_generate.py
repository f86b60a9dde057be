"""Text in, text out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import anyorder
import anyorder.api.generate
import anyorder.modes.left_to_right
from anyorder.api.output import Output, Stream
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import diffusion
from anyorder.model.rope import Rotary
from tests.writers import BOS, END, TEXT, WORDS, byte_tokenizer, chain, sentencepiece_tokenizer


@pytest.fixture(params=[sentencepiece_tokenizer, byte_tokenizer])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    make: Callable[[], PreTrainedTokenizerBase] = request.param
    return make()


@pytest.fixture
def writer(tokenizer: PreTrainedTokenizerBase) -> Llama:
    """Writes `TEXT` and ends."""
    return chain(tokenizer, [*tokenizer(TEXT)["input_ids"], END])


@pytest.fixture
def random_model() -> Llama:
    """Random weights for prompts of token ids below 128."""
    config = ModelConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return Llama(config)


# ---- text ------------------------------------------------------------------------------------------


def test_prompt_and_text_spell_right(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    for words in range(1, len(WORDS)):
        prompt = " ".join(WORDS[:words])
        out = anyorder.generate(writer, tokenizer, prompt)
        assert isinstance(out.text, str)
        assert prompt + out.text == TEXT
        assert out.text.startswith(" ")


def test_a_single_prompt_gives_a_string_and_a_flat_list(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, "Once upon a")
    prompt, whole = tokenizer("Once upon a")["input_ids"], tokenizer(TEXT)["input_ids"]
    assert out.text == " time there was one little girl named Lily"
    assert out.token_ids == [*whole[len(prompt) :], END]
    assert out.sequences == [[*whole, END]]
    assert out.stopped == ["end"]
    assert out.passes == len(out.token_ids) == out.trace.passes
    assert out.trace.tokens == len(out.token_ids) - 1


def test_a_batch_gives_lists(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, ["Once upon a time there was", "Once", f"{TEXT}"[:-5]], max_new_tokens=3)
    whole = tokenizer(TEXT)["input_ids"]
    at = len(whole) - len(WORDS)
    assert out.text == [" one little girl", " upon a time", " Lily"]
    assert out.token_ids == [whole[at + 6 : at + 9], whole[at + 1 : at + 4], [whole[-1], END]]
    assert out.sequences == [whole[: at + 9], whole[: at + 4], [*whole, END]]
    assert out.stopped == ["length", "length", "end"]
    assert out.trace.tokens == 7


def test_a_list_of_one_is_a_batch(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, ["Once"], max_new_tokens=1)
    assert out.text == [" upon"]
    assert out.token_ids == [[out.sequences[0][-1]]]


def test_an_empty_prompt_becomes_the_token_that_begins_a_text() -> None:
    for tokenizer in (sentencepiece_tokenizer(), byte_tokenizer()):
        words = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        out = anyorder.generate(chain(tokenizer, [BOS, *words, END]), tokenizer, "")
        assert out.text == TEXT
        assert out.sequences == [[BOS, *words, END]]


def test_an_empty_prompt_without_such_a_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(UserError) as caught:
        anyorder.generate(chain(tokenizer, [3, 4], bos_token_id=None), tokenizer, ["Once", ""])
    message = "the prompt is '' and this network has no token that begins a text: give at least one word."
    assert str(caught.value) == message


def test_a_character_in_several_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Cut anywhere, a character belongs to where it is complete; it does not spoil the whole ones beside it."""
    ids = tokenizer("Once€ó")["input_ids"]
    start = len(tokenizer("Once")["input_ids"])
    assert len(ids) == start + 5
    model = chain(tokenizer, [*ids, END])
    for known in range(start, start + 5):
        for count in range(1, start + 6 - known):
            out = anyorder.generate(model, tokenizer, ids[:known], max_new_tokens=count)
            euro = "€" if known < start + 3 <= known + count else ""
            assert out.text == euro + ("ó" if known + count == start + 5 else "")


def test_words_after_bytes_that_are_no_character(tokenizer: PreTrainedTokenizerBase) -> None:
    once, upon = tokenizer("Once")["input_ids"], tokenizer("Once upon")["input_ids"][-1]
    stray = tokenizer("ó")["input_ids"][-1]
    model = chain(tokenizer, [*once, stray, upon, END])
    assert anyorder.generate(model, tokenizer, "Once").text == "\N{REPLACEMENT CHARACTER} upon"
    assert anyorder.generate(model, tokenizer, "Once", stop="up").stopped == ["stop"]


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("time there", " upon a "),  # two tokens
        ("me the", " upon a ti"),  # from the middle of one into the middle of the next
        (" there", " upon a time"),  # the space of a word is part of its token
        ("e", " upon a tim"),
        (["Lily", "little", "girl"], " upon a time there was one "),
        ("little girl named Lil", " upon a time there was one "),
        (" ", ""),
        ("Once", " upon a time there was one little girl named Lily"),  # only what was written counts
        ("e upon", " upon a time there was one little girl named Lily"),
    ],
)
def test_stop_strings(writer: Llama, tokenizer: PreTrainedTokenizerBase, stop: str | list[str], text: str) -> None:
    out = anyorder.generate(writer, tokenizer, "Once", stop=stop)
    assert out.text == text
    assert out.stopped == ["stop" if len(text) < 40 else "end"]


def test_token_ids_keep_the_stop_string(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, "Once", stop="me the")
    assert out.sequences == [tokenizer("Once upon a time there")["input_ids"]]


def test_stop_strings_per_row(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, ["Once upon a time", "Once", "Once upon"], stop=["time", "was"])
    assert out.text == [" there ", " upon a ", " a "]


def test_a_stop_string_inside_a_character_in_several_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("Once€ó")["input_ids"]
    model = chain(tokenizer, [*ids, END])
    assert anyorder.generate(model, tokenizer, "Once", stop="€").token_ids == ids[-5:-2]
    assert anyorder.generate(model, tokenizer, "Once", stop="ó").text == "€"
    assert anyorder.generate(model, tokenizer, ids[:-4], stop="€").text == ""
    assert anyorder.generate(model, tokenizer, ids[:-2], stop="€").stopped == ["end"]


def test_a_special_token_stops_by_its_name(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("Once upon")["input_ids"]
    out = anyorder.generate(chain(tokenizer, [*ids, END, 0], eos_token_ids=()), tokenizer, "Once", stop="</s>")
    assert out.stopped == ["stop"]
    assert out.text == " upon"
    assert out.token_ids == [ids[-1], END]


def test_looking_for_stop_strings_reads_a_short_tail(
    writer: Llama, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    decode = type(tokenizer).decode

    def counting(self: PreTrainedTokenizerBase, ids: list[int], **options: bool) -> str:
        lengths.append(len(ids))
        return str(decode(self, ids, **options))

    monkeypatch.setattr(type(tokenizer), "decode", counting)
    anyorder.generate(writer, tokenizer, "Once", stop="xyz")
    assert len(lengths) > 2 * len(WORDS)
    assert max(lengths) <= 3


def test_stop_by_end_token_leaves_an_ordinary_end_token_out_of_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """An end token of the network need not be special in the tokenizer."""
    ids = tokenizer("Once upon a time")["input_ids"]
    out = anyorder.generate(chain(tokenizer, ids, eos_token_ids=(ids[-1],)), tokenizer, "Once")
    assert out.text == " upon a"
    assert out.token_ids == ids[-3:]


# ---- token ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[5, 6, 7], (5, 6, 7), torch.tensor([5, 6, 7])], ids=["list", "tuple", "tensor"])
def test_token_ids_need_no_tokenizer(random_model: Llama, prompt: list[int]) -> None:
    out = anyorder.generate(random_model, None, prompt, max_new_tokens=4)
    assert out.text is None
    assert len(out.token_ids) == 4
    assert out.sequences == [[5, 6, 7, *out.token_ids]]  # type: ignore[misc]


@pytest.mark.parametrize(
    "prompts",
    [[[5, 6, 7], [8, 9, 10]], torch.tensor([[5, 6, 7], [8, 9, 10]]), [torch.tensor([5, 6, 7]), [8, 9, 10]]],
    ids=["lists", "tensor", "list of both"],
)
def test_batches_of_token_ids(random_model: Llama, prompts: list[list[int]]) -> None:
    out = anyorder.generate(random_model, None, prompts, max_new_tokens=4)
    assert out.text is None
    for row, prompt in enumerate(([5, 6, 7], [8, 9, 10])):
        alone = anyorder.generate(random_model, None, prompt, max_new_tokens=4)
        assert out.token_ids[row] == alone.token_ids


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_batches_change_nothing(random_model: Llama, batch_size: int, temperature: float) -> None:
    model = random_model.double()
    prompts = [[1, 2], [1, 2], [3], [4, 5, 6, 7], [1, 2]]
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "seed": 6}
    options |= {"top_k": 40, "top_p": 0.9} if temperature else {}
    whole = anyorder.generate(model, None, prompts, **options)
    cut = anyorder.generate(model, None, prompts, batch_size=batch_size, **options)
    assert cut.sequences == whole.sequences
    assert sorted(event[1:4] for event in cut.trace.events) == sorted(event[1:4] for event in whole.trace.events)
    assert {event[:4] for event in cut.trace.events} == {event[:4] for event in whole.trace.events}
    assert cut.passes == 12 * len(range(0, 5, batch_size))
    assert (len({tuple(ids) for ids in whole.sequences}) == 5) == (temperature > 0), "rows draw independently"
    slow = anyorder.generate(model, None, prompts, use_cache=False, **options)
    assert slow.sequences == whole.sequences


def test_seeds(random_model: Llama) -> None:
    def write(seed: int) -> object:
        return anyorder.generate(random_model, None, [1, 2, 3], temperature=1.0, seed=seed).token_ids

    assert write(0) == write(0)
    assert write(0) != write(1)


# ---- several texts of one prompt -------------------------------------------------------------------


def test_samples_are_as_if_the_prompt_stood_in_the_list_so_many_times(random_model: Llama) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.1, "min_p": 0.02, "seed": 3}
    first, second = [1, 2], [3, 4, 5]
    out = anyorder.generate(random_model, None, [first, second], num_samples=3, **options)
    flat = anyorder.generate(random_model, None, [first] * 3 + [second] * 3, **options)
    assert out.token_ids == [flat.token_ids[:3], flat.token_ids[3:]]
    assert out.sequences == flat.sequences
    assert out.stopped == flat.stopped
    assert [event[:4] for event in out.trace.events] == [event[:4] for event in flat.trace.events]
    assert len({tuple(ids) for ids in out.sequences}) == 6
    for batch_size in (1, 2, 4):
        cut = anyorder.generate(random_model, None, [first, second], num_samples=3, batch_size=batch_size, **options)
        assert cut.token_ids == out.token_ids


def test_more_samples_do_not_change_the_first_ones(random_model: Llama) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.1}
    one = anyorder.generate(random_model, None, [1, 2], **options).token_ids
    assert anyorder.generate(random_model, None, [1, 2], num_samples=1, **options).token_ids == [one]
    assert anyorder.generate(random_model, None, [1, 2], num_samples=4, **options).token_ids[0] == one


def test_samples_nest_as_prompts_do(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    options: dict[str, Any] = {"max_new_tokens": 1, "temperature": 0.01}
    single = anyorder.generate(writer, tokenizer, "Once", num_samples=2, **options)
    assert single.text == [" upon", " upon"]
    assert [len(ids) for ids in single.token_ids] == [1, 1]
    batch = anyorder.generate(writer, tokenizer, ["Once", "Once upon"], num_samples=2, **options)
    assert batch.text == [[" upon", " upon"], [" a", " a"]]
    assert len(batch.sequences) == len(batch.stopped) == 4
    assert anyorder.generate(writer, tokenizer, ["Once"], num_samples=1, **options).text == [[" upon"]]
    assert anyorder.generate(writer, tokenizer, "Once", num_samples=1).text == [TEXT.removeprefix("Once")]


# ---- streams ---------------------------------------------------------------------------------------


def same_output(stream: Stream, out: Output) -> None:
    """A stream's output equals that of `generate`, but for the time."""
    given = stream.output
    assert given.text == out.text
    assert (given.token_ids, given.sequences, given.stopped) == (out.token_ids, out.sequences, out.stopped)
    assert given.trace.events == out.trace.events
    assert given.passes == out.passes
    assert given.trace.seconds > 0


@pytest.mark.parametrize("stop", [None, "time there", "me the", [" little girl", "Lily"], "xyz"])
def test_pieces_of_words(writer: Llama, tokenizer: PreTrainedTokenizerBase, stop: str | list[str] | None) -> None:
    stream = anyorder.stream(writer, tokenizer, "Once", stop=stop)
    pieces = list(stream)
    out = anyorder.generate(writer, tokenizer, "Once", stop=stop)
    assert "".join(pieces) == out.text
    assert all(pieces)
    assert len(pieces) > 1
    same_output(stream, out)


def noise(tokenizer: PreTrainedTokenizerBase) -> Llama:
    """Random weights: writes any tokens, bytes that are no characters among them."""
    config = ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.3,
        eos_token_ids=(END,),
    )
    torch.manual_seed(0)
    return Llama(config)


NOISE = [(noise(tokenizer), tokenizer) for tokenizer in (sentencepiece_tokenizer(), byte_tokenizer())]


@settings(deadline=None, max_examples=12)
@given(
    prompt=st.lists(st.integers(0, 270), min_size=1, max_size=5) | st.text("Oncé🙂 ", min_size=1, max_size=5),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    stop=st.lists(st.text("aeit \N{REPLACEMENT CHARACTER}", min_size=1, max_size=2), max_size=2),
)
@pytest.mark.parametrize("kind", [0, 1], ids=["sentencepiece", "bytes"])
def test_pieces_of_anything(kind: int, prompt: list[int] | str, seed: int, temperature: float, stop: list[str]) -> None:
    model, tokenizer = NOISE[kind]
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": temperature, "seed": seed, "stop": stop}
    stream = anyorder.stream(model, tokenizer, prompt, **options)
    text = "".join(stream)
    out = anyorder.generate(model, tokenizer, prompt, **options)
    assert text == out.text
    assert not any(part in text for part in stop)
    same_output(stream, out)


def test_characters_are_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("Once€ó a")["input_ids"]
    start = len(tokenizer("Once")["input_ids"])
    pieces = list(anyorder.stream(chain(tokenizer, [*ids, END]), tokenizer, ids[: start + 1]))
    assert pieces[:2] == ["€", "ó"]
    assert "".join(pieces) == "€ó a"


def test_pieces_come_while_the_text_is_written(
    writer: Llama, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    hidden = writer.hidden

    def counting(*arguments: Any) -> Tensor:
        passes.append(1)
        return hidden(*arguments)

    monkeypatch.setattr(writer, "hidden", counting)
    stream = anyorder.stream(writer, tokenizer, "Once", compile=False)
    assert passes == []
    assert next(stream) == " upon"
    assert len(passes) == 1
    assert next(stream) == " a"
    assert len(passes) == 2
    assert torch.is_grad_enabled()
    with pytest.raises(UserError, match="the output of this stream is not complete: read its pieces to the end first"):
        _ = stream.output
    stream.close()
    assert list(stream) == []
    assert len(passes) == 2


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_an_abandoned_stream_closes_its_decoder(
    writer: Llama, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    closed: list[bool] = []
    take = anyorder.modes.left_to_right.left_to_right_steps

    def steps(*arguments: Any, **options: Any) -> Iterator[Step]:
        try:
            yield from take(*arguments, **options)
        finally:
            closed.append(True)

    monkeypatch.setattr(anyorder.modes.left_to_right, "left_to_right_steps", steps)
    stream = anyorder.stream(writer, tokenizer, "Once")
    next(stream)
    assert closed == []
    if how == "closed":
        stream.close()
    else:
        del stream
    assert closed == [True]


def test_time_between_pieces_does_not_count(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    stream = anyorder.stream(writer, tokenizer, "Once", max_new_tokens=4)
    for _ in stream:
        time.sleep(0.2)
    assert stream.output.trace.seconds < 0.6


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (
            ["Once", "a"],
            {},
            "the prompt of a stream is a list of 2: give one of them, or use generate.",
        ),
        (
            "Once",
            {"num_samples": 2},
            "num_samples is 2 for a stream, which is one text: leave it out, or use generate.",
        ),
        (
            "Once",
            {"num_beams": 4},
            "num_beams is 4 for a stream, but only the end of a beam search tells which text is best: "
            "leave it out, or use generate.",
        ),
        ("Once", {"order": "random"}, "this network writes by 'left-to-right', not by 'any-order': train it"),
        ("Once", {"temperature": -1}, "temperature is -1: give 0"),
        ("Once", {"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number above 0."),
        ("Once", {"stop": ""}, "stop is '': give strings of at least one character."),
        ([999], {}, "prompt 0 has the token id 999: give ids from"),
    ],
)
def test_mistakes_with_streams_are_named_at_once(
    writer: Llama, tokenizer: PreTrainedTokenizerBase, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        anyorder.stream(writer, tokenizer, prompt, **options)
    assert str(caught.value).startswith(message)


def test_a_stream_needs_a_tokenizer(random_model: Llama) -> None:
    with pytest.raises(UserError) as caught:
        anyorder.stream(random_model, None, [3])
    message = "tokenizer is None: give the tokenizer, which makes the text to be streamed, or use generate."
    assert str(caught.value) == message


# ---- repetition penalty: the decoder hands the ids before to `Sampling.choose` ----------------------


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_repetition_penalty_looks_at_prompt_and_text(random_model: Llama, temperature: float) -> None:
    model = random_model.double()
    prompts = [[1, 2], [3], [4, 5, 6, 7, 8, 9]]
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "repetition_penalty": 1.5, "seed": 6}
    batch = anyorder.generate(model, None, prompts, **options)
    for row, prompt in enumerate(prompts):
        sampling = Sampling(temperature=temperature, repetition_penalty=1.5, seed=6)
        generators = sampling.generators([row])
        ids = list(prompt)
        for _ in range(12):
            logits_V = model(torch.tensor([ids])).logits[0, -1].detach()
            ids.append(int(sampling.choose(logits_V[None], generators, [ids])[0]))
        assert batch.sequences[row] == ids
    plain = anyorder.generate(model, None, prompts, **options | {"repetition_penalty": 1.0})
    assert plain.sequences != batch.sequences


# ---- mistakes --------------------------------------------------------------------------------------

KINDS = "give a string, token ids, or a list of strings or of token ids."


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (
            [5],
            {"order": "random"},
            "this network writes by 'left-to-right', not by 'any-order': train it for that from this checkpoint, with "
            "`anyorder pretrain --objective permutation`.",
        ),
        ([5], {"order": 4}, "order is 4: give one of left-to-right, any-order, groups:N, right-to-left:N,"),
        ([5], {"batch_size": 0}, "batch_size is 0: give a whole number above 0, or None for all texts at once."),
        ([5], {"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number above 0."),
        ([5], {"max_new_tokens": 2.5}, "max_new_tokens is 2.5: give a whole number."),
        ([5], {"temperature": -1.0}, "temperature is -1.0: give 0 for the most probable token, or a number above 0"),
        ([5], {"stop": "x"}, "stop is 'x' and tokenizer is None: give the tokenizer, which tells where text stops."),
        ([5], {"stop": ["x", ""]}, "stop is ['x', '']: give strings of at least one character."),
        ([5], {"stop": 3}, "stop is 3: give strings of at least one character."),
        ("Once", {}, "'Once' is text and tokenizer is None: give the tokenizer, or token ids."),
        (["Once"], {}, "'Once' is text and tokenizer is None: give the tokenizer, or token ids."),
        ([], {}, f"the prompt is []: {KINDS}"),
        ({"text": "Once " * 99}, {}, "the prompt is {'text': 'Once Once On...ce Once Once '}: give a string"),
        (None, {}, f"the prompt is None: {KINDS}"),
        (7, {}, f"the prompt is 7: {KINDS}"),
        ([[5], []], {}, "prompt 1 has 0 tokens: give at least one, such as the token that begins a text."),
        ([5, "x"], {}, "prompt 0 is 5: give strings, or lists of whole numbers."),
        ([[5], "x"], {}, "'x' is text and tokenizer is None: give the tokenizer, or token ids."),
        (
            [[5], [5, -1]],
            {},
            "prompt 1 has a gap ([...], or -1 among token ids), and this network writes by 'left-to-right' alone, "
            "which fills none: load a network that writes in any order or by diffusion, or give token ids where [...]",
        ),
        ([[5], [0.5]], {}, "prompt 1 is [0.5]: give strings, or lists of whole numbers."),
        (torch.tensor([0.5]), {}, "prompt 0 is 0.5: give strings, or lists of whole numbers."),
        ([[5], [128]], {}, "prompt 1 has the token id 128: give ids from 0 to 127, from the"),
        (
            [1] * 70,
            {},
            "prompt 0 has 70 tokens, and the network was trained on 64: "
            "shorten it to at most 63, which leaves room to write.",
        ),
    ],
)
def test_mistakes_are_named(random_model: Llama, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        anyorder.generate(random_model, None, prompt, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0: give a whole number above 0, or None for a text each."),
        ({"num_samples": 2.0}, "num_samples is 2.0: give a whole number or None."),
        (
            {"num_samples": 3},
            "num_samples is 3 at temperature 0, where all samples are the same: "
            "give a temperature above 0, or leave out num_samples.",
        ),
        ({"num_beams": 0}, "num_beams is 0: give a whole number above 0; 1 is no beam search."),
        ({"num_beams": None}, "num_beams is None: give a whole number."),
        (
            {"num_beams": 4, "temperature": 0.5},
            "temperature is 0.5 beside num_beams 4, but beam search draws nothing: leave out one.",
        ),
        (
            {"num_beams": 4, "num_samples": 2},
            "num_samples is 2 beside num_beams 4, but beam search finds one text: leave out one.",
        ),
        (
            {"num_beams": 4, "compile": True},
            "compile is True beside num_beams 4, but beam search is not compiled: leave out one.",
        ),
        (
            {"top_k": 5},
            "top_k is 5 at temperature 0, where the most probable token is taken: give a temperature above 0",
        ),
        ({"top_p": 0.9}, "top_p is 0.9 at temperature 0, where the most probable token is taken: give a temperature"),
        (
            {"min_p": 0.1, "repetition_penalty": 1.2, "num_beams": 2},
            "min_p is 0.1 at temperature 0, where the most probable token is taken: give a temperature above 0, or "
            "leave out min_p.",
        ),
        ({"min_p": 2}, "min_p is 2: give a probability above 0 and at most 1, or None to keep every token."),
        ({"repetition_penalty": 0}, "repetition_penalty is 0: give a number above 0, such as 1.1, or 1 for no penalty"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    random_model: Llama, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        anyorder.generate(random_model, None, [5], **options)
    assert str(caught.value).startswith(message)


def test_a_mistake_in_the_last_batch_is_found_before_the_first_is_written(random_model: Llama) -> None:
    random_model.forward = random_model.hidden = None  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match="prompt 2 has the token id 999"):
        anyorder.generate(random_model, None, [[1], [2], [999]], batch_size=1)


# ---- checkpoints -----------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path, writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    anyorder.save(writer, tokenizer, tmp_path / "saved")
    model, again = anyorder.load(tmp_path / "saved", dtype="float64", device="cpu", attention="eager")
    assert again is not None
    assert next(model.parameters()).dtype == torch.float64
    assert anyorder.generate(model, again, "Once").text == anyorder.generate(writer, tokenizer, "Once").text


def test_a_checkpoint_without_tokenizer(tmp_path: Path, random_model: Llama) -> None:
    anyorder.save(random_model, None, tmp_path / "saved")
    model, tokenizer = anyorder.load(tmp_path / "saved", device="cpu")
    assert tokenizer is None
    assert anyorder.generate(model, None, [3, 4]).token_ids == anyorder.generate(random_model, None, [3, 4]).token_ids


def test_load_hands_on_every_option(monkeypatch: pytest.MonkeyPatch, random_model: Llama) -> None:
    options = {"dtype": "bfloat16", "device": "cpu", "tokenizer": "org/words", "revision": "v1", "token": "hf_x"}
    given: dict[str, object] = {}

    def load(path: str, **rest: object) -> tuple[Llama, None]:
        given.update(rest, path=path)
        return random_model, None

    monkeypatch.setattr(anyorder.api.generate.checkpoints, "load", load)
    anyorder.load("org/name", attention="eager", **options)  # type: ignore[arg-type]
    assert given == {"path": "org/name", "backend": "eager", "split": None, **options}


def test_a_revision_is_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"revision is 'v1', but .* is no model on the hub: leave it out"):
        anyorder.load(tmp_path, revision="v1")


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention"])
def test_transformers_names_of_attention(tmp_path: Path, random_model: Llama, name: str) -> None:
    anyorder.save(random_model, None, tmp_path / "saved")
    model, _ = anyorder.load(tmp_path / "saved", device="cpu", attention=name)
    assert model.backend in ("eager", "sdpa", "flex", "flex_attention")


def test_convert(tmp_path: Path, random_model: Llama) -> None:
    anyorder.save(random_model, None, tmp_path / "saved")
    anyorder.convert(tmp_path / "saved", tmp_path / "half", dtype="bfloat16")
    model, _ = anyorder.load(tmp_path / "half", device="cpu")
    assert next(model.parameters()).dtype == torch.bfloat16


# ---- the package -----------------------------------------------------------------------------------


def test_public_names() -> None:
    assert anyorder.__version__ == "0.1.0"
    assert set(anyorder.__all__) <= set(dir(anyorder))
    assert all(callable(getattr(anyorder, name)) for name in anyorder.__all__)
    with pytest.raises(AttributeError, match="module 'anyorder' has no attribute 'lode'"):
        anyorder.lode  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import anyorder, sys; print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("how", ["never", "always", None, 2])
def test_compile_is_true_false_or_auto(tiny_config: ModelConfig, how: Any) -> None:
    with pytest.raises(UserError, match=r"^compile is .*: give True or False or 'auto'\.$"):
        anyorder.generate(Llama(tiny_config), None, [1, 2], compile=how)


def test_a_network_of_another_way_is_not_written_from_left_to_right(tiny_config: ModelConfig) -> None:
    """Its logits are those of the row's own token, so what came out would be wrong without a word."""
    face = anyorder.AnyOrderForCausalLM.of(Llama(tiny_config))
    face.config.modes = (diffusion(3),)
    with pytest.raises(UserError, match=r"^this network writes by 'diffusion' and has no logits for the next token"):
        anyorder.generate(face, None, [1, 2], order="left-to-right")
    with pytest.raises(UserError, match=r"^this network writes by 'diffusion' and has no logits for the next token"):
        anyorder.stream(face, None, [1, 2], order="left-to-right")
