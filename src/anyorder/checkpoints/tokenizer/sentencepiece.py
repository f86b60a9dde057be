"""SentencePiece's `tokenizer.model`: byte pairs and unigrams, with pieces of every type that a fast tokenizer can hold.

What is built is compared with SentencePiece itself on texts that are made of the model's own pieces, and refused where
the ids differ.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from anyorder.checkpoints.tokenizer.folder import ends
from anyorder.checkpoints.tokenizer.pieces import PROBES, SPACE, bpe_merges
from anyorder.errors import UserError

if TYPE_CHECKING:
    pass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model's file says.

    Attributes:
        pieces: text, score and type of each, in the order of their ids.
        kind: `UNIGRAM`, `BPE`, or another one.
        byte_fallback: whether what is not in the vocabulary becomes its bytes.
        suffix: whether spaces close words instead of beginning them.
        charsmap: how characters are normalized, compiled; empty for not at all.
        dummy_prefix: whether a space is put before each text.
        strips: whether spaces at the ends, and all but one in between, are dropped.
        escapes: whether spaces become `▁`.
    """

    pieces: Sequence[tuple[str, float, int]]
    kind: int
    byte_fallback: bool
    suffix: bool
    charsmap: bytes
    dummy_prefix: bool
    strips: bool
    escapes: bool

    def of_type(self, *types: int) -> list[str]:
        """Return the pieces of these types."""
        return [piece for piece, _, its_type in self.pieces if its_type in types]


def sentencepiece_backend(path: Path, *, legacy: bool = True) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer of a SentencePiece model, and its special tokens by name.

    Args:
        path: the file.
        legacy: whether the space before a text also precedes what follows a special token, as transformers' field of
            this name says.

    Raises:
        UserError: the file is damaged, or its pieces or rules have no equal in a fast tokenizer.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        theirs = SentencePieceProcessor(model_file=str(path))
        model = read_model(path.read_bytes())
    except (RuntimeError, OSError, ValueError, IndexError, struct.error) as error:
        raise UserError(
            f"{str(path)!r} is no model of SentencePiece or tiktoken: give a folder with tokenizer.json."
        ) from error
    backend, reason = backend_of(model, legacy=legacy)
    if backend is not None and any(backend.encode(text).ids != theirs.encode(text) for text in _probes(model)):
        reason = "its rules are beyond a fast tokenizer"
    if reason or backend is None:
        raise UserError(
            f"{str(path)!r} is a SentencePiece model that cannot be read exactly ({reason}): give the folder's "
            "tokenizer.json, as transformers' converters write it."
        )
    ids = {"bos_token": theirs.bos_id(), "eos_token": theirs.eos_id(), "unk_token": theirs.unk_id()}
    special = {name: model.pieces[token_id][0] for name, token_id in ids.items() if token_id >= 0}
    add_special(backend, model, legacy=legacy)
    backend.post_processor = ends(backend, special.get("bos_token"), None)
    return backend, special


def backend_of(model: Model, *, legacy: bool) -> tuple[Tokenizer | None, str | None]:
    """Build the tokenizer of a model, without special tokens; None with the reason where a fast one cannot hold it."""
    reason = _why_not(model)
    return (None, reason) if reason else (_build(model, legacy=legacy), None)


def add_special(backend: Tokenizer, model: Model, *, legacy: bool) -> None:
    """Make the control tokens of a model special tokens of its tokenizer."""
    # Behind spaces, not before them: all tokens are found in normalized text where a space begins the whole text alone.
    normalized = _is_first_only(model, legacy)
    backend.add_special_tokens([AddedToken(piece, special=True, normalized=normalized) for piece in _special(model)])


def _special(model: Model) -> list[str]:
    return model.of_type(UNKNOWN, CONTROL)


def _is_first_only(model: Model, legacy: bool) -> bool:
    return model.dummy_prefix and not legacy


def _why_not(model: Model) -> str | None:
    """Return why a fast tokenizer cannot hold a model, if something in its file says so."""
    names = [piece for piece, _, _ in model.pieces]
    if model.kind not in (UNIGRAM, BPE):
        return "it is made of words or characters, not of byte pairs or unigrams"
    if len(set(names)) < len(names):
        return "a piece is in the vocabulary twice"
    if model.of_type(UNUSED):
        return "it has pieces marked as unused"
    if model.suffix or not model.escapes:
        return "spaces close words in it, or are no part of pieces"
    if len(model.of_type(UNKNOWN)) != 1:
        return "it has no piece for what is unknown"
    return None


def _build(model: Model, *, legacy: bool) -> Tokenizer:
    vocabulary = {piece: token_id for token_id, (piece, _, _) in enumerate(model.pieces)}
    (unknown,) = model.of_type(UNKNOWN)
    user_defined = sorted(model.of_type(USER_DEFINED), key=len, reverse=True)
    if model.kind == BPE:
        score = {piece: score for piece, score, its_type in model.pieces if its_type == NORMAL}
        backend = Tokenizer(
            models.BPE(
                vocabulary, bpe_merges(score), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback,
                ignore_merges=bool(user_defined),
            )
        )  # fmt: skip
    else:
        scored = [(piece, _unigram_score(model, piece, score, kind)) for piece, score, kind in model.pieces]
        backend = Tokenizer(models.Unigram(scored, vocabulary[unknown], byte_fallback=model.byte_fallback))
    backend.normalizer = normalizers.Sequence(_normalizers(model, legacy=legacy))
    cuts: list[pre_tokenizers.PreTokenizer] = []
    if _is_first_only(model, legacy):
        cuts.append(pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False))
        if model.strips:  # of a text of spaces nothing is left
            cuts.append(pre_tokenizers.Split(Regex(rf"\A{SPACE}\z"), "removed"))
    if user_defined and model.kind == BPE:  # whole, and never merged
        cuts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, user_defined))), "isolated"))
    if model.kind == UNIGRAM or user_defined:
        # Written out in a text, the names of these pieces are plain characters.
        reserved = "|".join(
            rf"{re.escape(piece[0])}(?={re.escape(piece[1:])})"
            if model.kind == UNIGRAM
            else rf"\A{re.escape(piece[0])}(?={re.escape(piece[1:])}\z)"
            for piece in model.of_type(UNKNOWN, CONTROL, BYTE)
        )
        cuts.append(pre_tokenizers.Split(Regex(reserved), "isolated"))
    if cuts:
        backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    readers = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*readers, *([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else [])])
    return backend


def _unigram_score(model: Model, piece: str, score: float, its_type: int) -> float:
    """Return the score of a piece; SentencePiece gives those that users defined one that nearly always wins."""
    if its_type != USER_DEFINED:
        return score
    best = max(score for _, score, its_type in model.pieces if its_type == NORMAL)
    return len(piece.encode()) * best - 0.1


def _normalizers(model: Model, *, legacy: bool) -> list[normalizers.Normalizer]:
    """Return SentencePiece's rules for characters and spaces, in its order."""
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        charsmap = normalizers.Precompiled(model.charsmap)
        # Tokenizers would take the two for one character.
        apart = charsmap.normalize_str("\r") + charsmap.normalize_str("\n")
        steps += [normalizers.Replace("\r\n", apart), charsmap]
    first_only = _is_first_only(model, legacy)
    if first_only:
        # The pre-tokenizer adds no space to a text that begins with one, which SentencePiece does.
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}"), SPACE * 2))
    if model.strips:  # spaces alone: SentencePiece leaves line breaks
        steps += [
            normalizers.Replace(Regex(r" +\z"), ""),
            normalizers.Replace(Regex(r"\A +"), SPACE if first_only else ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    elif first_only:
        steps.append(normalizers.Replace(Regex(r"\A "), SPACE * 2))
    steps.append(normalizers.Replace(" ", SPACE))
    if model.strips:  # at the end, a written ▁ counts as a space as well
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    if model.dummy_prefix and legacy:
        steps.append(normalizers.Prepend(SPACE))
    return steps


def _probes(model: Model) -> Iterator[str]:
    """Yield texts of the model's own pieces: each that is matched whole, and some others, in several surroundings."""
    yield from PROBES
    normal = model.of_type(NORMAL)
    some = [piece.replace(SPACE, " ") for piece in normal[:: max(1, len(normal) // 400)]]
    yield "".join(some)
    yield "  ".join(some[::3])
    yield from some[::8]
    users = model.of_type(USER_DEFINED)
    for piece in users[:: max(1, len(users) // 100)]:
        text = piece.replace(SPACE, " ")
        yield from (text, f" {text}", f"a{text}b {text}{text} c", f"{text} a  {text}")


# ------------------------------------------------------------------------------------------------ the file


def read_model(data: bytes) -> Model:
    """Return what a model's file says; a message of Protocol Buffers, whose fields are numbered.

    Raises:
        ValueError, IndexError, struct.error: the file is none, or not whole.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            score = struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0]
            pieces.append((_bytes(piece.get(1, b"")).decode(), score, int(piece.get(3, NORMAL))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    return Model(
        pieces=pieces,
        kind=int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, False)),
        suffix=bool(trainer.get(24, False)),
        charsmap=_bytes(normalizer.get(2, b"")),
        dummy_prefix=bool(normalizer.get(3, True)),
        strips=bool(normalizer.get(4, True)),
        escapes=bool(normalizer.get(5, True)),
    )


def _bytes(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes are expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the fields of a message: their number, and an integer or the bytes of what they hold."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"field of kind {wire}")
        if at + size > len(data):
            raise ValueError("the message is not whole")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer of seven bits a byte, and where what follows it begins."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
