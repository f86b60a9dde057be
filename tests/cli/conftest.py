"""A small saved network for commands to work on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import anyorder
from anyorder.data import train_tokenizer
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network of three layers with grouped heads and its tokenizer, saved."""
    tokenizer = train_tokenizer(["Once upon a time there was a little girl named Lily."] * 2, 280)
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.2,
        eos_token_ids=(tokenizer.eos_token_id,),
    )
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    anyorder.save(Llama(config), tokenizer, path)
    return path
