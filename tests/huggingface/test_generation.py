"""transformers' `generate` on the face, token for token as on transformers' class with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    TextStreamer,
)

import anyorder
from anyorder.data import train_tokenizer
from anyorder.huggingface import AnyOrderForCausalLM, PastKeyValues
from anyorder.huggingface.versions import CACHE_NAMES
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary
from tests.huggingface.twins import END, SHAPE, VOCABULARY, Twins, assert_close, batch, face_of, llama, twins

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "uncached": {"use_cache": False},
    "beams": {"num_beams": 3},
    "uncached beams": {"num_beams": 3, "use_cache": False},
    "best two beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "sampled twice": {"do_sample": True, "num_return_sequences": 2, "min_p": 0.01},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    "several ends": {"eos_token_id": [END, 40, 41, 42]},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.fixture
def pair() -> Twins:
    return twins()


def both(pair: Twins, *given: Any, **options: Any) -> list[Any]:
    """What each of the two writes, from the same seed."""
    written = []
    for model in pair:
        torch.manual_seed(1)
        written.append(model.generate(*given, **options))
    return written


@pytest.mark.parametrize("lengths", [(7,), (9, 4, 6)], ids=["one text", "padded on the left"])
@pytest.mark.parametrize("mode", MODES)
def test_as_transformers(pair: Twins, mode: str, lengths: tuple[int, ...]) -> None:
    ids, mask = batch(*lengths)
    ours, theirs = both(pair, ids, attention_mask=mask, max_new_tokens=20, **MODES[mode])
    assert ours.tolist() == theirs.tolist()
    assert ours.shape[1] > max(lengths) + 1


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_window_shorter_than_the_text(mode: str) -> None:
    theirs: Any = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).eval()
    ids, mask = batch(9, 4)
    ours, expected = both((face_of(theirs), theirs), ids, attention_mask=mask, max_new_tokens=20, **MODES[mode])
    assert ours.tolist() == expected.tolist()


def test_tied_head() -> None:
    ids, mask = batch(9, 4)
    ours, theirs = both(twins(tie_word_embeddings=True), ids, attention_mask=mask, max_new_tokens=20)
    assert ours.tolist() == theirs.tolist()


def test_from_embeddings(pair: Twins) -> None:
    ids, mask = batch(9, 4)
    embeds = pair[0].get_input_embeddings()(ids)
    ours, theirs = both(pair, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=10)
    assert ours.tolist() == theirs.tolist()


def test_scores(pair: Twins) -> None:
    ids, mask = batch(9, 4)
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    ours, theirs = both(pair, ids, attention_mask=mask, max_new_tokens=5, **options)
    for found, expected in zip(ours.scores, theirs.scores, strict=True):
        assert_close(found, expected)
    assert_close(ours.hidden_states[2][1], theirs.hidden_states[2][1])
    assert isinstance(ours.past_key_values, PastKeyValues)
    assert repr(ours.past_key_values) == f"PastKeyValues(2 texts, {ours.sequences.shape[1] - 1} columns)"


@pytest.mark.parametrize("written", CACHE_NAMES)
@pytest.mark.parametrize("read", CACHE_NAMES)
def test_a_conversation_goes_on_from_its_cache(pair: Twins, written: str, read: str) -> None:
    ours, theirs = pair
    ids, _ = batch(9)
    turn = ours.generate(ids, max_new_tokens=5, eos_token_id=None, return_dict_in_generate=True)
    longer = torch.cat((turn.sequences, batch(4)[0]), 1)
    assert turn[read] is getattr(turn, read)
    found = ours.generate(longer, max_new_tokens=8, **{written: turn[read]})
    assert found.tolist() == theirs.generate(longer, max_new_tokens=8).tolist()


def test_guesses_that_are_rolled_back(pair: Twins) -> None:
    """Copied from the prompt, or written by a smaller network."""
    ids, _ = batch(9)
    ids = torch.cat((ids, ids), 1)
    ours, theirs = both(pair, ids, max_new_tokens=20, prompt_lookup_num_tokens=3)
    assert ours.tolist() == theirs.tolist()
    ours, theirs = pair
    smaller = face_of(llama(num_hidden_layers=1))
    found = ours.generate(ids, max_new_tokens=20, assistant_model=smaller, do_sample=False)
    assert found.tolist() == theirs.generate(ids, max_new_tokens=20).tolist()


def test_a_cache_grows(pair: Twins) -> None:
    ids, mask = batch(9, 4)
    ours, theirs = both(pair, ids, attention_mask=mask, max_new_tokens=150, eos_token_id=None)
    assert ours.tolist() == theirs.tolist()


def test_the_cache_that_is_asked_for_by_name_is_not_made(
    pair: Twins, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    ids, _ = batch(9)
    found = pair[0].generate(ids, max_new_tokens=5, cache_implementation="static")
    assert found.tolist() == pair[0].generate(ids, max_new_tokens=5).tolist()


def test_the_configuration_names_the_special_tokens(tiny_config: ModelConfig) -> None:
    face = AnyOrderForCausalLM.of(Llama(tiny_config.replace(bos_token_id=3, eos_token_ids=(4, 5), pad_token_id=6)))
    generation = face.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (3, [4, 5], 6)
    assert isinstance(generation, GenerationConfig)


def test_streamer_and_stop_strings(tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_tokenizer(["a stitch in time saves nine"] * 3, 300)
    face = AnyOrderForCausalLM.of(Llama(tiny_config.replace(vocab_size=len(tokenizer))).eval())
    given = tokenizer(["a stitch"], return_tensors="pt", return_token_type_ids=False)
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    written = face.generate(**given, max_new_tokens=12, streamer=streamer)
    text = tokenizer.decode(written[0, given["input_ids"].shape[1] :])
    assert capsys.readouterr().out == f"{text}\n"
    first = tokenizer.decode(written[0, given["input_ids"].shape[1]])
    stopped = face.generate(**given, max_new_tokens=12, stop_strings=[first], tokenizer=tokenizer)
    assert tokenizer.decode(stopped[0]) == f"a stitch{first}"


def test_both_ways_of_writing_agree(pair: Twins) -> None:
    """A face is written with like any network, without transformers' `generate`."""
    ours, _ = pair
    ids, mask = batch(9, 4)
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    out = anyorder.generate(ours, None, rows, max_new_tokens=15)
    found = ours.generate(ids, attention_mask=mask, max_new_tokens=15)[:, 9:].tolist()
    for written, expected in zip(out.token_ids, found, strict=True):
        assert written == expected[: len(written)]
    assert max(map(len, out.token_ids)) == len(found[0])


def test_tokens_of_a_batch_do_not_depend_on_it(pair: Twins) -> None:
    ours, _ = pair
    ids, mask = batch(9, 4, 6)
    together: Tensor = ours.generate(ids, attention_mask=mask, max_new_tokens=12, eos_token_id=None)
    for row, kept in enumerate(mask.bool()):
        alone = ours.generate(ids[row, kept][None], max_new_tokens=12, eos_token_id=None)
        assert together[row, 9:].tolist() == alone[0, int(kept.sum()) :].tolist()
    assert together.max() < VOCABULARY


def test_texts_too_long_for_a_cache(tiny_config: ModelConfig) -> None:
    """Dynamic rotary embeddings turn all keys anew beyond the trained length, so nothing is cached there."""
    rotary = DynamicRotary(theta=1e4, factor=4.0, original_max_position_embeddings=16)
    face = AnyOrderForCausalLM.of(Llama(tiny_config.replace(rotary=rotary)).eval())
    ids, mask = batch(9, 4)
    found = face.generate(ids, attention_mask=mask, max_new_tokens=20)
    assert found.tolist() == face.generate(ids, attention_mask=mask, max_new_tokens=20, use_cache=False).tolist()
    assert face.generate(ids, max_new_tokens=7, return_dict_in_generate=True).past_key_values is not None
    with torch.no_grad():
        assert face(batch(17)[0]).past_key_values is None
        assert face(batch(16)[0]).past_key_values is not None
