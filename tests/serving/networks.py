"""A small network that writes in every mode, and its tokenizer."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from anyorder.model.rope import Rotary
from tests.data.tokenizers import characters

END, MASK = 2, 3


def four_modes(**changes: object) -> tuple[Llama, PreTrainedTokenizerBase]:
    """Random weights, large enough that attention matters; a token is a character."""
    tokenizer = characters()
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rotary=Rotary(theta=100.0), initializer_range=0.4,
        eos_token_ids=(END,), bos_token_id=1, modes=(LEFT_TO_RIGHT, ANY_ORDER, diffusion(MASK), blocks(MASK, 4)),
    )  # fmt: skip
    return Llama(config.replace(**changes)).eval(), tokenizer
