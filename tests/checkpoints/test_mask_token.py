"""A mask token for a vocabulary that has none."""

from __future__ import annotations

import pytest
import torch

from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.mask_token import with_mask_token
from anyorder.data import train_tokenizer
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.ways import diffusion

TEXTS = ["the cat sat on the mat and the dog sat on the cat"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 1, 5])
def test_a_row_is_added_where_there_is_none(tiny_config: ModelConfig, tied: bool, spare: int) -> None:
    tokenizer = train_tokenizer(TEXTS, 260)
    before = len(tokenizer)
    model = Llama(tiny_config.replace(vocab_size=before + spare, tie_word_embeddings=tied))
    larger, mask = with_mask_token(model, tokenizer, "<|mask|>", seed=3)
    assert mask == before == tokenizer.mask_token_id
    assert tokenizer.decode([mask]) == "<|mask|>"
    assert tokenizer("<|mask|>")["input_ids"] == [mask]
    assert larger.config.vocab_size == max(before + 1, before + spare)
    assert (larger.lm_head.weight is larger.model.embed_tokens.weight) == tied
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = model.get_parameter(name), larger.get_parameter(name)
        others = [row for row in range(before + spare) if row != mask]
        assert torch.equal(new[others], old[others])
        distance = (new[mask] - old.mean(0)) / old.std(0)
        assert 0 < float(distance.abs().max().detach()) < 0.5
    same = "model.layers.0.mlp.up_proj.weight"
    assert larger.get_parameter(same) is model.get_parameter(same)
    assert adapt(larger, (diffusion(mask),)).config.way("diffusion").mask_token_id == mask


def test_a_mask_token_that_there_is_stays(tiny_config: ModelConfig) -> None:
    tokenizer = train_tokenizer(TEXTS, 260)
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer)))
    larger, mask = with_mask_token(model, tokenizer, "<|mask|>")
    again, same = with_mask_token(adapt(larger, (diffusion(mask),)), tokenizer, "<|other|>")
    assert (again.config.vocab_size, same) == (larger.config.vocab_size, mask)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    wide = Llama(tiny_config.replace(vocab_size=len(tokenizer)))
    assert with_mask_token(wide, tokenizer, "<|other|>") == (wide, mask)
