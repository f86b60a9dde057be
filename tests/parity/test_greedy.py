"""Greedy writing gives the tokens that transformers' `generate` gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from tests.writers import write_left_to_right

PROMPTS = [[1, 5, 9, 33], [1], [1, 60, 61, 62, 63, 64, 65, 66, 67], [1, 8]]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("ends", [(), (17, 44)], ids=["endless", "with end tokens"])
def test_greedy_tokens(backend: str, use_cache: bool, kv_heads: int, ends: tuple[int, ...]) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    torch.manual_seed(kv_heads)
    theirs = LlamaForCausalLM(
        LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, rms_norm_eps=1e-5)
    ).eval()
    ours = Llama(ModelConfig(**sizes, rotary=Rotary(theta=10_000.0), eos_token_ids=ends), backend=backend)
    ours.load_state_dict(theirs.state_dict())

    width = max(map(len, PROMPTS))
    expected = theirs.generate(
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]),
        do_sample=False,
        max_new_tokens=40,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
    )[:, width:].tolist()
    generation = write_left_to_right(ours, PROMPTS, max_new_tokens=40, use_cache=use_cache)
    for row, written in enumerate(generation.written):
        assert written == expected[row][: len(written)]
        assert set(expected[row][len(written) :]) <= {0}, "transformers wrote on where we stopped"
        assert len(written) == 40 or written[-1] in ends
