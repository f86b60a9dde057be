"""Sizes on paper are those that processes hold and send."""

from __future__ import annotations

import pytest
import torch

from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.rope import Rotary
from anyorder.parallel.sizes import Layout, Sizes
from tests.model.networks import network

LLAMA_8B = ModelConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, rotary=Rotary(theta=500000.0), max_position_embeddings=8192,
)  # fmt: skip


def test_by_hand() -> None:
    alone = Sizes(LLAMA_8B, Layout(), torch.bfloat16)
    assert alone.parameters == 8_030_261_248
    assert alone.weights == 2 * 8_030_261_248
    assert alone.training == 8 * 8_030_261_248
    assert alone.cache_per_token == 2 * 32 * 8 * 128 * 2
    assert alone.sent_in_pass(1, 1) == alone.sent_for_shards() == 0
    split = Sizes(LLAMA_8B, Layout(tp=8, fsdp=1), torch.bfloat16)
    norms = 65 * 4096
    assert split.parameters == (8_030_261_248 - norms) // 8 + norms
    assert split.cache_per_token == alone.cache_per_token // 8
    assert split.summed_in_pass(10) == 10 * 65 * 4096 * 2
    assert split.gathered_in_pass(10, 3) == 3 * 128256 * 2
    assert split.sent_in_pass(10, 3) == 7 / 8 * (2 * 10 * 65 * 4096 * 2 + 3 * 128256 * 2)
    sharded = Sizes(LLAMA_8B, Layout.of("tp=8, fsdp=64"), torch.bfloat16)
    assert sharded.layout.devices == 512
    half_a_row_of_embedding_and_head = 4096  # 16,032 rows are 250.5 a device
    assert sharded.parameters == split.parameters // 64 + half_a_row_of_embedding_and_head
    assert sharded.shards == split.weights + 64 * 2 * half_a_row_of_embedding_and_head
    assert sharded.sent_for_shards() == round(3 * 63 / 64 * sharded.shards)


@pytest.mark.parametrize("words", ["", "tp", "tp=0", "tp=2,tp=2", "pp=2", "tp=2;fsdp=2", "tp=-1"])
def test_other_layouts_are_refused(words: str) -> None:
    with pytest.raises(UserError, match=r"parallel is .*: give numbers of devices, such as tp=8,fsdp=64\."):
        Layout.of(words)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"tensor_parallel is 3, which does not divide what is split \(2 key-value"):
        Sizes(network().config, Layout(tp=3), torch.float32)
