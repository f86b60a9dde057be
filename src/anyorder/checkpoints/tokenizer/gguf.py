"""The tokenizer of a GGUF file: its tokens, and how texts are cut, in llama.cpp's terms.

A file holds the tokens with scores (SentencePiece) or merges (byte-level byte pairs), but of how a text is cut before
that, no more than the name of one of llama.cpp's own patterns. Tokenizers that cut otherwise are refused, both ways.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from anyorder.checkpoints.gguf_file import GGUFFile
from anyorder.checkpoints.tokenizer.encoding import added_tokens
from anyorder.checkpoints.tokenizer.folder import with_settings
from anyorder.checkpoints.tokenizer.pieces import BYTES, UNKNOWN, tokenizer_pieces
from anyorder.checkpoints.tokenizer.sentencepiece import BPE, Model, add_special, backend_of
from anyorder.checkpoints.tokenizer.settings import Settings
from anyorder.checkpoints.weights import listed
from anyorder.errors import UserError
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""

NO_TOKENIZER = ("no_vocab", "none")
"""Kinds of tokenizers of files that hold none."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES_ALONE = BYTE_LEVEL | {"use_regex": False}
SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3_SPLIT: dict[str, Any] = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}

QWEN2_SPLIT = LLAMA3_SPLIT | {"pattern": {"Regex": LLAMA3_SPLIT["pattern"]["Regex"].replace(r"\p{N}{1,3}", r"\p{N}")}}


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """How byte-level tokenizers cut texts before they merge bytes.

    Attributes:
        steps: as `tokenizer.json` writes them.
        whole_first: whether tokens of the vocabulary are found without merges.
        normalizer: the type that `tokenizer.json` names, if any.
        add_bos: whether texts begin with the begin token where a file does not say.
        others: further names that llama.cpp has for it.
    """

    steps: Sequence[Mapping[str, Any]]
    whole_first: bool = False
    normalizer: str | None = None
    add_bos: bool = False
    others: Collection[str] = ()


PATTERNS: dict[str, Pattern] = {
    "gpt-2": Pattern(steps=[BYTE_LEVEL]),
    "smollm": Pattern(steps=[SINGLE_DIGITS, BYTE_LEVEL]),
    "llama-bpe": Pattern(
        steps=[LLAMA3_SPLIT, BYTES_ALONE], whole_first=True, add_bos=True, others=("llama3", "llama-v3")
    ),
    "qwen2": Pattern(steps=[QWEN2_SPLIT, BYTES_ALONE], normalizer="NFC", others=("deepseek-r1-qwen",)),
}
"""By llama.cpp's name."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a GGUF file holds of a tokenizer.

    Attributes:
        model, pre: llama.cpp's names of the kind of tokenizer, and of the pattern that cuts texts.
        tokens, types: one for each embedding.
        scores, merges: which pairs become a token first; one of the two.
        add_bos, add_eos: whether encoding a text adds them; None where a file leaves it to the kind of tokenizer.
        space_prefix: whether SentencePiece puts a space before a text; None as `add_bos`.
        bos, eos, unk, pad: token ids, as far as the tokenizer has them.
        chat_template: in Jinja.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_bos: bool | None
    add_eos: bool | None
    space_prefix: bool | None = None
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    chat_template: str | None


# ---- from a tokenizer ------------------------------------------------------------------------------


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
    plain = model["type"] == "BPE" and not any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    )
    for name, pattern in PATTERNS.items():
        same = len(steps) == len(pattern.steps) and all(
            step.get(field) == value
            for step, of in zip(steps, pattern.steps, strict=True)
            for field, value in of.items()
        )
        normalizer = (whole["normalizer"] or {}).get("type")
        if (
            plain
            and same
            and (bool(model.get("ignore_merges")), normalizer) == (pattern.whole_first, pattern.normalizer)
        ):
            return name
    raise UserError(
        f"the tokenizer ({model['type']}) cuts texts in none of the ways that are written into GGUF files, those of "
        "Llama 2, Llama 3, GPT-2, SmolLM and Qwen2: write a Hugging Face folder instead (llama.cpp's "
        "convert_hf_to_gguf.py knows more)."
    )


# ---- to a tokenizer --------------------------------------------------------------------------------


def tokenizer_of(words: Vocabulary, path: Path) -> PreTrainedTokenizerFast:
    """Make the tokenizer that a file describes.

    Args:
        words: from the file's fields.
        path: for messages.

    Raises:
        UserError: it is of a kind, or cuts texts in a way, that is not known; or its parts disagree.
    """
    lengths = {len(words.tokens), len(words.types), len(words.tokens if words.scores is None else words.scores)}
    ids = [index for index in (words.bos, words.eos, words.unk, words.pad) if index is not None]
    if len(lengths) > 1 or not all(0 <= index < len(words.tokens) for index in ids):
        raise UserError(f"the fields of the tokenizer in {str(path)!r} do not fit each other: fetch the file again.")
    if words.model == "llama" and words.scores is not None:
        backend, add_bos = _of_scores(words, path), True
    elif words.model == "gpt2" and words.merges is not None:
        backend, add_bos = _of_merges(words, path)
    else:
        raise UserError(
            f"{str(path)!r} has a tokenizer of the kind {shown(words.model)}: of GGUF files this version reads 'llama' "
            "(SentencePiece's byte pairs) and 'gpt2' (byte-level byte pairs), so give the tokenizer's folder as well."
        )
    names = {"bos_token": words.bos, "eos_token": words.eos, "unk_token": words.unk, "pad_token": words.pad}
    options: dict[str, Any] = {name: words.tokens[index] for name, index in names.items() if index is not None}
    if words.chat_template is not None:
        options["chat_template"] = words.chat_template
    settings = Settings(
        options=options,
        add_bos=add_bos if words.add_bos is None else words.add_bos,
        add_eos=bool(words.add_eos),
    )
    return with_settings(backend, settings, path)


def _used(words: Vocabulary) -> int:
    """Return how many tokens there are, without placeholders at the end for embeddings that have none."""
    count = len(words.tokens)
    while count and words.types[count - 1] == UNUSED:
        count -= 1
    return count


def _of_scores(words: Vocabulary, path: Path) -> Tokenizer:
    """Make SentencePiece's byte pairs; a file does not hold its rules for characters, which Llama's have not."""
    assert words.scores is not None
    model = Model(
        pieces=list(zip(words.tokens, words.scores, words.types, strict=True))[: _used(words)],
        kind=BPE,
        byte_fallback=BYTE in words.types,
        suffix=False,
        charsmap=b"",
        dummy_prefix=words.space_prefix is not False,
        strips=False,
        escapes=True,
    )
    backend, reason = backend_of(model, legacy=True)
    if backend is None:
        raise UserError(
            f"the tokenizer in {str(path)!r} cannot be read exactly ({reason}): give the tokenizer's folder as well."
        )
    add_special(backend, model, legacy=True)
    return backend


def _of_merges(words: Vocabulary, path: Path) -> tuple[Tokenizer, bool]:
    """Make byte-level byte pairs, and whether texts begin with the begin token unless the file says otherwise."""
    pattern = next((found for name, found in PATTERNS.items() if words.pre in (name, *found.others)), None)
    if pattern is None:
        raise UserError(
            f"{str(path)!r} cuts texts by the pattern {shown(words.pre)}: of GGUF files this version knows "
            f"{listed(PATTERNS)}, so give the tokenizer's folder as well."
        )
    vocabulary = {token: index for index, token in enumerate(words.tokens[: _used(words)])}
    try:
        backend = Tokenizer.from_str(json.dumps({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None if pattern.normalizer is None else {"type": pattern.normalizer},
            "pre_tokenizer": {
                "type": "Sequence", "pretokenizers": [{"trim_offsets": True, **step} for step in pattern.steps],
            },
            "post_processor": None,
            "decoder": BYTE_LEVEL | {"trim_offsets": True},
            "model": {
                "type": "BPE", "vocab": vocabulary, "merges": words.merges, "ignore_merges": pattern.whole_first,
            },
        }))  # fmt: skip
    except Exception as error:
        raise UserError(f"the tokenizer in {str(path)!r} is damaged ({error}): fetch the file again.") from error
    kinds = list(zip(words.tokens, words.types, strict=True))[: _used(words)]
    for token, its_type in kinds:
        if its_type in (CONTROL, USER_DEFINED):
            added = AddedToken(token, special=its_type == CONTROL, normalized=False)
            (backend.add_special_tokens if its_type == CONTROL else backend.add_tokens)([added])
    return backend, pattern.add_bos


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer and chat template of a GGUF file; None where it has none.

    Raises:
        UserError: the file is damaged, cuts texts in a way that is not known, or the package `gguf` is missing.
    """
    file = GGUFFile(path)
    model = file.field("tokenizer.ggml.model")
    if model in (None, *NO_TOKENIZER):
        return None
    tokens, types = file.required("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.token_type")
    special = {kind: file.field(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "unknown", "padding")}
    words = Vocabulary(
        model=str(model),
        pre=str(file.field("tokenizer.ggml.pre") or "default"),
        tokens=tokens,
        types=types or [1] * len(tokens),
        scores=file.field("tokenizer.ggml.scores"),
        merges=file.field("tokenizer.ggml.merges"),
        add_bos=file.field("tokenizer.ggml.add_bos_token"),
        add_eos=file.field("tokenizer.ggml.add_eos_token"),
        space_prefix=file.field("tokenizer.ggml.add_space_prefix"),
        bos=special["bos"],
        eos=special["eos"],
        unk=special["unknown"],
        pad=special["padding"],
        chat_template=file.field("tokenizer.chat_template"),
    )
    return tokenizer_of(words, path)


def holds_tokenizer(path: Path) -> bool:
    """Return whether a GGUF file holds a tokenizer.

    Raises:
        UserError: the file is damaged, or the package `gguf` is missing.
    """
    return GGUFFile(path).field("tokenizer.ggml.model") not in (None, *NO_TOKENIZER)
