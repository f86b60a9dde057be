"""A mask token for a vocabulary that has none."""

from __future__ import annotations

import pytest
import torch

from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.mask_token import with_mask_token
from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import diffusion

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
    assert adapt(larger, (diffusion(mask),)).config.mode("diffusion").mask_token_id == mask


def test_a_mask_token_that_there_is_stays(tiny_config: ModelConfig) -> None:
    tokenizer = train_tokenizer(TEXTS, 260)
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer)))
    larger, mask = with_mask_token(model, tokenizer, "<|mask|>")
    again, same = with_mask_token(adapt(larger, (diffusion(mask),)), tokenizer, "<|other|>")
    assert (again.config.vocab_size, same) == (larger.config.vocab_size, mask)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    wide = Llama(tiny_config.replace(vocab_size=len(tokenizer)))
    assert with_mask_token(wide, tokenizer, "<|other|>") == (wide, mask)


def rows(model: Llama) -> torch.Tensor:
    return model.model.embed_tokens.weight.detach().clone()


@pytest.mark.parametrize("spare", [0, 1, 8])
@pytest.mark.parametrize("others", [[], ["<|new|>"]])
@pytest.mark.parametrize("name", ["<mask>", "<|mask|>", "[MASK]", "<|mdm_mask|>"])
@pytest.mark.parametrize("is_named", [True, False])
def test_the_row_of_a_mask_token_in_the_vocabulary_stays(
    tiny_config: ModelConfig, name: str, others: list[str], spare: int, is_named: bool
) -> None:
    """Whether the tokenizer names it its mask token or has it under that name alone, and wherever it is."""
    tokenizer = train_tokenizer(TEXTS, 260)
    tokenizer.add_special_tokens({"additional_special_tokens": [name, *others]})
    if is_named:
        tokenizer.mask_token = name
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer) + spare))
    before, size = rows(model), len(tokenizer)
    after, mask = with_mask_token(model, tokenizer)
    assert (mask, len(tokenizer)) == (tokenizer.convert_tokens_to_ids(name), size)
    assert torch.equal(rows(after), before)
    assert tokenizer.mask_token == name


def test_a_mask_token_beyond_the_embeddings_gets_a_row(tiny_config: ModelConfig) -> None:
    tokenizer = train_tokenizer(TEXTS, 260)
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer)))
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    larger, mask = with_mask_token(model, tokenizer)
    assert larger.config.vocab_size == len(tokenizer) == mask + 1
    assert torch.equal(rows(larger)[:mask], rows(model))


@pytest.mark.parametrize("token", [126, "126", " 126 "])
def test_a_number_is_an_id(tiny_config: ModelConfig, token: str | int) -> None:
    """Also where the vocabulary has a token of these digits."""
    tokenizer = train_tokenizer(["126 126 126"], 260)
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer) + 5))
    size = len(tokenizer)
    same, mask = with_mask_token(model, tokenizer, token)
    assert (same, mask) == (model, 126)
    assert (len(tokenizer), tokenizer.mask_token) == (size, None)  # an ordinary token is no special one
    assert with_mask_token(model, tokenizer, size + 4)[1] == size + 4  # a spare row
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|hidden|>"]})
    assert with_mask_token(model, tokenizer, str(size))[1] == size
    assert tokenizer.mask_token == "<|hidden|>"


def test_the_mask_token_of_the_network_decides(tiny_config: ModelConfig, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train_tokenizer(TEXTS, 260, mask_token="<mask>")
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer), modes=(diffusion(7),)))
    assert with_mask_token(model, tokenizer) == (model, 7)
    assert f"The network's mask token is 7, the tokenizer's {tokenizer.mask_token_id}" in caplog.text
    assert with_mask_token(model, tokenizer, "7") == (model, 7)
    with pytest.raises(UserError, match=r"^mask_token is 8, but the network's own mask token is 7: leave it out\.$"):
        with_mask_token(model, tokenizer, 8)


@pytest.mark.parametrize("token", [260, -1, "260", "9" * 5000, 10**30])
def test_ids_outside_the_vocabulary(tiny_config: ModelConfig, token: str | int) -> None:
    model = Llama(tiny_config.replace(vocab_size=260))
    with pytest.raises(UserError, match=r"mask_token is .*, but the network has 260 tokens: give an id below that"):
        with_mask_token(model, train_tokenizer(TEXTS, 260), token)


@pytest.mark.parametrize("token", ["", " ", True, 1.5, None])
def test_what_is_no_mask_token(tiny_config: ModelConfig, token: object) -> None:
    model = Llama(tiny_config.replace(vocab_size=260))
    with pytest.raises(UserError, match=r"^mask_token is .*: give the text of a token, or its id\.$"):
        with_mask_token(model, train_tokenizer(TEXTS, 260), token)  # type: ignore[arg-type]


def test_several_tokens_with_the_name_of_a_mask(tiny_config: ModelConfig) -> None:
    tokenizer = train_tokenizer(TEXTS, 260)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mask>", "[MASK]", "<2mass>"]})
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer)))
    with pytest.raises(UserError, match=r"the vocabulary has '<mask>', '\[MASK\]': give one of them"):
        with_mask_token(model, tokenizer)
    assert with_mask_token(model, tokenizer, "[MASK]") == (model, tokenizer.convert_tokens_to_ids("[MASK]"))
