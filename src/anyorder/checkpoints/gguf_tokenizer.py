"""The tokenizer of a GGUF file: its tokens, and how texts are cut, in llama.cpp's terms.

A file holds the tokens with scores (SentencePiece) or merges (byte-level byte pairs), but of how a text is cut before
that, no more than the name of one of llama.cpp's own patterns. Tokenizers that cut otherwise are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.tokenizer.encoding import added_tokens
from anyorder.checkpoints.tokenizer.pieces import BYTES, UNKNOWN, tokenizer_pieces
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES_ALONE = BYTE_LEVEL | {"use_regex": False}
SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3_SPLIT = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}

PATTERNS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([BYTE_LEVEL], False),
    "smollm": ([SINGLE_DIGITS, BYTE_LEVEL], False),
    "llama-bpe": ([LLAMA3_SPLIT, BYTES_ALONE], True),
}
"""By llama.cpp's name: how `tokenizer.json` writes the pattern, and whether whole tokens are found without merges."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a GGUF file holds of a tokenizer.

    Attributes:
        model, pre: llama.cpp's names of the kind of tokenizer, and of the pattern that cuts texts.
        tokens, types: one for each embedding.
        scores, merges: which pairs become a token first; one of the two.
        add_bos, add_eos: whether encoding a text adds them.
        bos, eos, unk, pad: token ids, as far as the tokenizer has them.
        chat_template: in Jinja.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_bos: bool
    add_eos: bool
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    chat_template: str | None


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """Return what a GGUF file holds of a tokenizer, for a network with `size` embeddings.

    Raises:
        UserError: llama.cpp would cut texts otherwise.
    """
    whole = json.loads(_backend(tokenizer).to_str())
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {token["id"]: token for token in whole["added_tokens"]}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(size)]
    byte_tokens = set(BYTES) if whole["model"].get("byte_fallback") else set()

    def type_of(index: int, token: str) -> int:
        if index not in by_id:
            return UNUSED
        if byte_tokens and token == UNKNOWN:
            return UNKNOWN_TYPE
        if index in added:
            return CONTROL if added[index]["special"] else USER_DEFINED
        return BYTE if token in byte_tokens else NORMAL

    begin, end = added_tokens(tokenizer)
    template = tokenizer.chat_template
    common: dict[str, Any] = {
        "tokens": tokens,
        "types": [type_of(index, token) for index, token in enumerate(tokens)],
        "add_bos": begin[:1] == [tokenizer.bos_token_id],
        "add_eos": end[-1:] == [tokenizer.eos_token_id],
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "chat_template": template.get("default") if isinstance(template, dict) else template,
    }
    if byte_tokens:
        _, scores = tokenizer_pieces(tokenizer)
        return Vocabulary(model="llama", pre="default", scores=scores + [0.0] * (size - len(scores)), **common)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"].get("merges", ())]
    return Vocabulary(model="gpt2", pre=_pattern(whole), merges=merges, **common)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"the tokenizer is a {type(tokenizer).__name__}, whose rules are Python code: write a Hugging Face folder "
            "instead."
        )
    return backend


def _pattern(whole: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pattern by which a byte-level tokenizer cuts texts.

    Raises:
        UserError: it is no byte-level tokenizer, or llama.cpp has no such pattern.
    """
    model, before = whole["model"], whole["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    plain = (
        model["type"] == "BPE"
        and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and whole["normalizer"] is None
    )
    for name, (wanted, whole_tokens_first) in PATTERNS.items():
        same = len(steps) == len(wanted) and all(
            step.get(field) == value for step, of in zip(steps, wanted, strict=True) for field, value in of.items()
        )
        if plain and same and bool(model.get("ignore_merges")) == whole_tokens_first:
            return name
    raise UserError(
        f"the tokenizer ({model['type']}) cuts texts in none of the ways that are written into GGUF files, those of "
        "Llama 2, Llama 3, GPT-2 and SmolLM: write a Hugging Face folder instead (llama.cpp's convert_hf_to_gguf.py "
        "knows more)."
    )
