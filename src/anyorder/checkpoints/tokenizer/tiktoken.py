"""tiktoken's files of ranks, as Llama 3 and 4 have them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from anyorder.checkpoints.tokenizer.folder import ends
from anyorder.errors import UserError

LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
)  # fmt: skip
"""The 256 tokens that follow the ranks of a tiktoken file, by the names that Llama 3.1 has in Hugging Face's form."""

LLAMA4_RANKS = 200_000
"""Llama 4 cuts texts by another pattern and has other special tokens; the number of its ranks gives it away."""


def _reserved(name: str, numbers: range) -> Iterator[str]:
    return (f"<|{name}reserved_special_token_{number}|>" for number in numbers)


LLAMA4_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>",
    *_reserved("text_post_train_", range(6)), "<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>",
    *_reserved("text_post_train_", range(8, 69)),
    "<|image_start|>", "<|image_end|>", *_reserved("vision_", range(2)),
    "<|tile_x_separator|>", "<|tile_y_separator|>", *_reserved("vision_", range(2, 6)),
    "<|image|>", *_reserved("vision_", range(6, 7)), "<|patch|>", *_reserved("vision_", range(7, 1048)),
    *_reserved("reasoning_", range(8)), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>",
    *_reserved("", range(904)),
)  # fmt: skip
"""The 2048 tokens that follow the ranks of Llama 4."""

LLAMA4_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Cuts texts before tokens are merged, as tiktoken's o200k does."""


def is_tiktoken(path: Path) -> bool:
    """Return whether a file begins as tiktoken's do: with a token in base64 and its rank. SentencePiece is binary."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n?", file.readline(1000)) is not None


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the tokens of a tiktoken file and their ranks, which are their ids and the order in which they are merged.

    Raises:
        UserError: the file is damaged or not whole.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise UserError(
                f"line {number} of {str(path)!r} is not a token in base64 and its rank: fetch the file again."
            ) from error
    single = {bytes([value]) for value in range(256)}
    if sorted(ranks.values()) != list(range(len(ranks))) or not single <= ranks.keys():
        raise UserError(f"the ranks in {str(path)!r} have gaps, or lack some single bytes: fetch the file again.")
    return ranks


def tiktoken_backend(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer of a tiktoken file, whose ids equal tiktoken's, and its special tokens by name.

    Raises:
        UserError: the file is damaged.
    """
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = read_ranks(path)
    special, pattern = LLAMA3_SPECIAL, {}  # the converter's own pattern is Llama 3's
    if len(ranks) == LLAMA4_RANKS:
        special, pattern = LLAMA4_SPECIAL, {"pattern": LLAMA4_PATTERN}

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:  # without the package tiktoken
            return ranks

    backend: Tokenizer = Converter(str(path), extra_special_tokens=special, **pattern).converted()
    bos, eos = special[:2]
    backend.post_processor = ends(backend, bos, None)
    return backend, {"bos_token": bos, "eos_token": eos}
