"""Tokenizers with a handful of words, and a network that writes what it is told."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from anyorder.checkpoints.tokenizer import BYTES, SPECIAL, pieces_tokenizer
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.decoding.trace import Generation, collect
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary

WORDS = ["Once", "upon", "a", "time", "there", "was", "one", "little", "girl", "named", "Lily"]
TEXT = " ".join(WORDS)
BOS, END = 1, 2


def sentencepiece_tokenizer() -> PreTrainedTokenizerBase:
    """Whole words with their space, single bytes for the rest; texts begin with <s>."""
    prefixes = dict.fromkeys(f"▁{word}"[:end] for word in WORDS for end in range(1, len(word) + 2))
    pieces = list(dict.fromkeys([*SPECIAL, *BYTES, *prefixes, *"".join(WORDS)]))
    return pieces_tokenizer(pieces, [-float(index) for index in range(len(pieces))])


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """As GPT-2's: words with the space before them, single bytes for the rest; nothing is added to a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġ{word}" for word in WORDS[1:]] + ["Once"]
    prefixes = dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet, *prefixes])}
    merges = sorted(((token[:-1], token[-1]) for token in prefixes), key=lambda pair: len(pair[0]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def chain(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], **config: Any) -> Llama:
    """A Llama that writes `ids`, all different, each after the one before: the head knows who follows whom."""
    assert len(set(ids)) == len(ids)
    size = len(tokenizer) + len(tokenizer) % 2
    defaults: dict[str, Any] = {"eos_token_ids": (END,), "bos_token_id": BOS, "max_position_embeddings": 64}
    model = Llama(
        ModelConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            rotary=Rotary(theta=10_000.0),
            **defaults | config,
        )
    )
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for before, after in itertools.pairwise(ids):
            model.lm_head.weight[after, before] = 1.0
    return model


def write_left_to_right(
    model: Llama, prompts: Sequence[Sequence[int]], *, sample_ids: Sequence[int] | None = None, **options: Any
) -> Generation:
    """Prompts and what continues them; `options` are those of `left_to_right_steps`."""
    sample_ids = range(len(prompts)) if sample_ids is None else sample_ids
    steps = left_to_right_steps(model, prompts, sample_ids=sample_ids, **options)
    return collect(steps, prompts, sample_ids, model.config.eos_token_ids)
