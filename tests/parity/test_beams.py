"""Beam search gives the tokens that transformers' `LlamaForCausalLM.generate(num_beams=...)` gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import anyorder
from anyorder.decoding.left_to_right.beams import Beams, search_beams
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.sampling import Sampling
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from tests.writers import write_left_to_right

PROMPTS = [[1, 5, 9, 33], [1], [1, 60, 61, 62, 63, 64, 65, 66, 67], [1, 8]]
LENGTH = 16


def networks(ends: tuple[int, ...]) -> tuple[LlamaForCausalLM, Llama]:
    """Theirs and ours with the same random weights, in float64."""
    sizes: dict[str, Any] = {
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    torch.manual_seed(3)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            eos_token_id=list(ends) or None,
        )
    )
    theirs = theirs.double().eval()
    ours = Llama(ModelConfig(**sizes, rotary=Rotary(theta=10_000.0), eos_token_ids=ends), backend="sdpa").double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def expected(theirs: Any, prompt: list[int], beams: int, **options: Any) -> list[int]:
    """What transformers writes after one prompt alone, so that no padding is near."""
    return all_expected(theirs, prompt, beams, **options)[0]


def all_expected(theirs: Any, prompt: list[int], beams: int, **options: Any) -> list[list[int]]:
    """The same for all that it returns, without its padding."""
    found = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=LENGTH,
        eos_token_id=theirs.config.eos_token_id,
        pad_token_id=0,
        return_dict_in_generate=True,
        **options,
    )
    lengths = (found.beam_indices >= 0).sum(1).tolist()
    return [ids[len(prompt) :][:length] for ids, length in zip(found.sequences.tolist(), lengths, strict=True)]


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("ends", [(), (17,), tuple(range(30, 36))], ids=["endless", "an end token", "many end tokens"])
def test_best_beam(beams: int, use_cache: bool, ends: tuple[int, ...]) -> None:
    theirs, ours = networks(ends)
    generation = write_left_to_right(ours, PROMPTS, num_beams=beams, max_new_tokens=LENGTH, use_cache=use_cache)
    assert generation.written == [expected(theirs, prompt, beams) for prompt in PROMPTS]
    if len(ends) > 1:
        assert "end" in generation.stopped
    greedy = anyorder.generate(ours, None, PROMPTS, max_new_tokens=LENGTH)
    assert greedy.token_ids != generation.written


@pytest.mark.parametrize("ends", [(17, 44), tuple(range(30, 42))], ids=["two end tokens", "many end tokens"])
def test_all_beams(ends: tuple[int, ...]) -> None:
    """Each text that is found, best first."""
    theirs, ours = networks(ends)
    texts = [
        [CausalText(sample_id, prompt, torch.Generator(), ends, len(prompt) + LENGTH) for _ in range(4)]
        for sample_id, prompt in enumerate(PROMPTS)
    ]
    prompts = [Beams(of_prompt, None) for of_prompt in texts]
    search_beams(prompts, CausalReader(ours, [text for of_prompt in texts for text in of_prompt]), Sampling())
    for beams, prompt in zip(prompts, PROMPTS, strict=True):
        assert [list(one.token_ids) for one in beams.complete] == all_expected(
            theirs, prompt, 4, num_return_sequences=4
        )


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_with_a_repetition_penalty(penalty: float) -> None:
    theirs, ours = networks((17, 44))
    out = anyorder.generate(ours, None, PROMPTS, num_beams=3, repetition_penalty=penalty, max_new_tokens=LENGTH)
    assert out.token_ids == [expected(theirs, prompt, 3, repetition_penalty=penalty) for prompt in PROMPTS]
