"""A tokenizer made on the spot."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from anyorder.errors import UserError

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, mask_token: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer (as GPT-2's): it can write any text, and decoding gives back every byte.

    Args:
        texts: what to learn merges from.
        vocab_size: number of tokens at most, the end token (and the mask token) among them.
        mask_token: token for what is not written yet, in networks that write by diffusion; none unless given.

    Raises:
        UserError: the vocabulary has no room for the 256 bytes and the end token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END_OF_TEXT, *([] if mask_token is None else [mask_token])]
    least = len(alphabet) + len(special)
    if vocab_size < least:
        tokens = "the end token" if mask_token is None else "the end and mask tokens"
        raise UserError(f"vocab_size is {vocab_size}: give at least {least}, all bytes and {tokens}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        **({} if mask_token is None else {"mask_token": mask_token}),
    )
