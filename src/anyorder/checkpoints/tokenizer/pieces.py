"""Pieces with scores, as llama2.c's `tokenizer.bin` holds them: Llama 2's kind of SentencePiece vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers

from anyorder.checkpoints.tokenizer.folder import ends
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL = (UNKNOWN, BOS, EOS)
"""The tokens that Llama 2's vocabularies begin with, in the order of their ids."""

BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
"""The tokens of single bytes; they follow the special ones."""

SPACE = "▁"
"""How a piece writes a space."""

PROBES = (
    "  Two  spaces, a ﬁgure of 1234, Ångström,\n\tcafé 日本語 😀 and the rest ",
    " ",
    "x",
    "▁<0x0A>\r\n\n",
    "e\u0301 \u00a0\u200b\u3000Ａ½ and  so   on",
)
"""Texts that show how a tokenizer treats spaces, ligatures, digits and what it does not know."""


def pieces_tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer from SentencePiece's byte-pair pieces, in the order of their ids, and their scores.

    Encoding begins with `<s>`; decoding drops the space that SentencePiece puts before every text.

    Raises:
        UserError: the vocabulary does not begin as Llama 2's, or has a piece twice.
    """
    if tuple(pieces[:3]) != SPECIAL or tuple(pieces[3:259]) != BYTES:
        raise UserError(
            f"the vocabulary begins with {list(pieces[:4])}: give one of Llama 2's kind, which begins with "
            f"{list(SPECIAL)} and the 256 single bytes."
        )
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) < len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if vocabulary[piece] != index)
        raise UserError(f"piece {twice!r} is in the vocabulary twice: export the tokenizer again.")
    from transformers import PreTrainedTokenizerFast

    merges = bpe_merges(_mergeable(pieces, scores))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    # A normalizer, not the `Metaspace` pre-tokenizer, which adds no space before a text that begins with one.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = ends(tokenizer, BOS, None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _mergeable(pieces: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    first = len(SPECIAL) + len(BYTES)
    return dict(zip(pieces[first:], scores[first:], strict=True))


def bpe_merges(score: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every way to make a piece of two others, best score first, as SentencePiece would choose.

    Where scores are equal (runs of spaces), the longest left part comes first: SentencePiece then takes the leftmost
    pair and so grows one run from the left.
    """
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in score
        for cut in range(1, len(piece))
        if piece[:cut] in score and piece[cut:] in score
    ]
    return sorted(pairs, key=lambda pair: (-score["".join(pair)], -len(pair[0])))


def tokenizer_pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[float]]:
    """Return the pieces of a tokenizer in the order of their ids, and scores that give the same merges: the inverse.

    Raises:
        UserError: it is not of Llama 2's kind.
    """
    refusal = UserError(
        "the tokenizer is not of Llama 2's kind (byte pairs of SentencePiece with single bytes): llama2.c has no form "
        "for it, so save it into a folder."
    )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refusal
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE" or not model["byte_fallback"]:
        raise refusal
    pieces = [str(tokenizer.convert_ids_to_tokens(index)) for index in range(len(tokenizer))]
    merges = [(left, right) for left, right in model["merges"]]
    score = _scores(merges)
    for piece in pieces[3 + len(BYTES) :]:  # single characters come after all merges, each one lower
        score.setdefault(piece, -float(len(score)))
    scores = [score.get(piece, 0.0) for piece in pieces]
    if (
        tuple(pieces[:3]) != SPECIAL
        or tuple(pieces[3:259]) != BYTES
        or bpe_merges(_mergeable(pieces, scores)) != merges
    ):
        raise refusal
    again = pieces_tokenizer(pieces, scores)  # its normalization shows in what it does
    if any(again.encode(text, split_special_tokens=True)[1:] != _plain(tokenizer, text) for text in PROBES):
        raise refusal
    return pieces, scores


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _scores(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return scores of the pieces that merges make, each one lower; equal where merges of several are mixed."""
    last = {"".join(pair): index for index, pair in enumerate(merges)}
    score: dict[str, float] = {}
    current, end = 0.0, -1
    for index, pair in enumerate(merges):
        if index > end:
            current = -float(len(score))
        end = max(end, last["".join(pair)])
        score.setdefault("".join(pair), current)
    return score
