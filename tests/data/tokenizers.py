"""Tokenizers of the kinds that differ where texts are joined."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from anyorder.checkpoints.tokenizer import load_tokenizer
from anyorder.data import train_tokenizer
from tests.writers import sentencepiece_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that writes something behind the end of each turn, and leaves out spaces around messages."""

FORGETFUL = (
    "{% for message in messages %}{{ message.role }}: {% if message.role == 'assistant' and not loop.last %}..."
    "{% else %}{{ message.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A template that shortens earlier answers, as those of models that think do."""


def characters() -> PreTrainedTokenizerBase:
    """One token per character: ids can be read, and counted, by hand."""
    names = ["<pad>", "<s>", "</s>", "<mask>", *map(chr, range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", mask_token="<mask>")


def chatty() -> PreTrainedTokenizerBase:
    """Byte pairs, with a chat template of its own."""
    tokenizer = train_tokenizer(["user: assistant: one two three, and so on and so on\n\n" * 9], 330)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def merging() -> PreTrainedTokenizerBase:
    """Byte pairs over everything, spaces and line ends too, so that tokens reach over the borders of messages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["assistant:\n\none two\n\nuser:\n\none two" * 9], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


ALL = (characters, chatty, merging, sentencepiece_tokenizer)


def stories(shared_data: Path) -> PreTrainedTokenizerBase:
    """Of stories260K."""
    return load_tokenizer(shared_data / "stories260K" / "tok512.bin")
