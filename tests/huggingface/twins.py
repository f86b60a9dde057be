"""Tiny random networks of transformers, and the same weights behind our face."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from anyorder.checkpoints.config_json import config_from_json
from anyorder.huggingface import AnyOrderConfig, AnyOrderForCausalLM

VOCABULARY = 96
END, PAD = 2, 0

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": PAD,
}

Twins = tuple[AnyOrderForCausalLM, Any]
"""Ours and theirs, whose types say less than they can."""


def llama(**changes: Any) -> Any:
    """A Llama of transformers, of weights large enough that attention matters."""
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes})).eval()


def face_of(theirs: PreTrainedModel) -> AnyOrderForCausalLM:
    """The same network as ours, with weights of its own."""
    backbone = config_from_json(theirs.config.to_dict() | {"architectures": None})
    ours = AnyOrderForCausalLM(AnyOrderConfig(backbone=backbone)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def twins(**changes: Any) -> Twins:
    theirs = llama(**changes)
    return face_of(theirs), theirs


def batch(*lengths: int, left: bool = True) -> tuple[Tensor, Tensor]:
    """Random tokens without special ones, padded to the longest, and the mask."""
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        where = slice(longest - length, None) if left else slice(length)
        ids[row, where] = torch.randint(3, VOCABULARY, (length,))
        mask[row, where] = 1
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """What transformers' `generate` hands to a network as true positions."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the largest number."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.detach().abs().max().item()))
