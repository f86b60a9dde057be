"""Tokenizers on disk: Hugging Face folders, llama2.c's `.bin`, and the `.model` of SentencePiece and of tiktoken.

llama2.c and SentencePiece hold the same thing, pieces with scores, and become one Hugging Face fast tokenizer whose
ids equal SentencePiece's. transformers' own `LlamaTokenizer` loses a space where a text begins with one. Of tiktoken
there is Llama 3's kind, whose ids equal tiktoken's.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, processors

from anyorder.checkpoints import llama2c
from anyorder.checkpoints.hub import fetch
from anyorder.errors import UserError
from anyorder.whole import whole_file, whole_folder

if TYPE_CHECKING:  # importing transformers' tokenizers takes a second, which networks alone need not wait for
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL = (UNKNOWN, BOS, EOS)
"""The tokens that Llama 2's vocabularies begin with, in the order of their ids."""

BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
"""The tokens of single bytes; they follow the special ones."""

SPACE = "▁"
"""How a piece writes a space."""

PROBE = "  Two  spaces, a ﬁgure of 1234, Ångström,\n\tcafé 日本語 😀 and the rest "
"""A text that shows how a SentencePiece model treats spaces, ligatures, digits and what it does not know."""

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
"""A folder that has one of these has a tokenizer."""

STOCK = {
    "DreamTokenizer": "Qwen2Tokenizer",
    "PreTrainedTokenizerFast": "PreTrainedTokenizerFast",
    "TokenizersBackend": "PreTrainedTokenizerFast",  # what transformers 5 writes for it
}
"""Tokenizers that are, without the code that their folder may bring, one of transformers'."""

LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
)  # fmt: skip
"""The 256 tokens that follow the ranks of a tiktoken file, by the names that Llama 3.1 has in Hugging Face's form."""

LLAMA4_RANKS = 200_000
"""Llama 4 cuts texts by another pattern and has other special tokens; the number of its ranks gives it away."""


def has_tokenizer(path: str | Path) -> bool:
    """Whether a folder has a tokenizer."""
    return any((Path(path) / name).is_file() for name in FILES)


def load_tokenizer(
    path: str | Path, *, revision: str | None = None, token: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, a llama2.c `.bin`, a SentencePiece or a tiktoken `.model`.

    Of the last three, special tokens written out in a text become those tokens, as is usual in Hugging Face; with the
    keyword `split_special_tokens=True` they are plain text, as in SentencePiece, tiktoken and llama2.c.

    Args:
        path: the folder or file, or the id of a model on the hub.
        revision, token: for the hub, see `fetch`.

    Raises:
        UserError: there is none, or its file is damaged or of another kind.
    """
    path = fetch(path, revision, token, weights=False)
    if not path.exists():
        raise UserError(f"tokenizer {str(path)!r} is no file or folder here: check the path.")
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _load_folder(path)
        if (path / "tokenizer.model").is_file():
            return load_tokenizer(path / "tokenizer.model")
        if (path / "tokenizer_config.json").is_file():
            return _load_folder(path)
        raise UserError(f"folder {str(path)!r} has no tokenizer.json: name the file or folder of the tokenizer.")
    if path.suffix == ".model":
        return _load_tiktoken(path) if is_tiktoken(path) else _load_sentencepiece(path)
    pieces, scores = llama2c.read_pieces(path)
    try:
        return pieces_tokenizer(pieces, scores)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Writes a tokenizer into a folder, which may hold a checkpoint already, or as a llama2.c `.bin`.

    Raises:
        UserError: there is a tokenizer already, or llama2.c's format cannot express this one.
    """
    path = Path(path)
    if path.suffix == ".bin":
        pieces, scores = tokenizer_pieces(tokenizer)
        with whole_file(path) as partial:
            llama2c.write_pieces(pieces, scores, partial)
    elif not path.exists():
        with whole_folder(path) as partial:
            tokenizer.save_pretrained(partial)
    elif not path.is_dir():
        raise UserError(f"output {str(path)!r} is a file: give a folder, or a name that ends in .bin.")
    elif (path / "tokenizer.json").exists():
        raise UserError(f"folder {str(path)!r} has a tokenizer.json already: give another folder, or delete it first.")
    else:
        with tempfile.TemporaryDirectory(dir=path, prefix=".tokenizer.") as partial_name:
            tokenizer.save_pretrained(partial_name)
            for file in sorted(Path(partial_name).iterdir()):
                file.replace(path / file.name)


def _load_folder(folder: Path) -> PreTrainedTokenizerBase:
    import transformers

    named = folder / "tokenizer_config.json"
    try:
        its_class = json.loads(named.read_text("utf-8")).get("tokenizer_class", "") if named.is_file() else ""
        loader: Any = getattr(transformers, STOCK.get(its_class, "AutoTokenizer"))
        # transformers does not know our networks, and would warn of them before it goes by the tokenizer's class.
        is_asked = loader is transformers.AutoTokenizer and _is_ours(folder / "config.json")
        options = {"config": transformers.PreTrainedConfig()} if is_asked else {}
        # Otherwise transformers asks whether to run code that came with the folder, and waits for an answer.
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers and tokenizers raise many kinds, down to bare `Exception`
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"the tokenizer in {str(folder)!r} cannot be read ({reason}): fetch it again.") from error


def _load_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{str(path)!r} is no model of SentencePiece or tiktoken: give a folder with tokenizer.json."
        ) from error
    pieces = [model.id_to_piece(index) for index in range(len(model))]
    scores = [model.get_score(index) for index in range(len(model))]
    refusal = f"{str(path)!r} is a SentencePiece model of another kind than Llama 2's: convert it by transformers"
    try:
        tokenizer = pieces_tokenizer(pieces, scores)
    except UserError as error:
        raise UserError(f"{refusal}.") from error
    # Its kind (byte pairs or unigrams) and its normalization show in what it does.
    if tokenizer.encode(PROBE, add_special_tokens=False) != model.encode(PROBE):
        raise UserError(f"{refusal}.")
    return tokenizer


# ------------------------------------------------------------------------------------------------ tiktoken


def is_tiktoken(path: Path) -> bool:
    """Whether a file begins as tiktoken's do: a line with a token in base64 and its rank. SentencePiece is binary."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n?", file.readline(1000)) is not None


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a tiktoken file and their ranks, which are their ids and the order in which they are merged.

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


def _load_tiktoken(path: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = read_ranks(path)
    if len(ranks) == LLAMA4_RANKS:
        raise UserError(f"{str(path)!r} is a tokenizer of Llama 4: this version reads Llama 3's, so give another.")

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:  # without the package tiktoken
            return ranks

    # Its pattern for cutting texts is Llama 3's.
    tokenizer: Tokenizer = Converter(str(path), extra_special_tokens=LLAMA3_SPECIAL).converted()
    bos, eos = LLAMA3_SPECIAL[:2]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, len(ranks))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )


# ------------------------------------------------------------------------------------------------ pieces and scores


def pieces_tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> PreTrainedTokenizerFast:
    """A fast tokenizer from SentencePiece's byte-pair pieces, in the order of their ids, and their scores.

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

    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(pieces, scores), unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    )
    # A normalizer, not the `Metaspace` pre-tokenizer, which adds no space before a text that begins with one.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS}:0 $A:0", pair=f"{BOS}:0 $A:0 {BOS}:1 $B:1", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _merges(pieces: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first, as SentencePiece would choose.

    Where scores are equal (runs of spaces), the longest left part comes first: SentencePiece then takes the leftmost
    pair and so grows one run from the left.
    """
    score = {piece: scores[index] for index, piece in enumerate(pieces) if index >= 3 + len(BYTES)}
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in score
        for cut in range(1, len(piece))
        if piece[:cut] in score and piece[cut:] in score
    ]
    return sorted(pairs, key=lambda pair: (-score["".join(pair)], -len(pair[0])))


def tokenizer_pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[float]]:
    """The pieces of a tokenizer in the order of their ids, and scores that give the same merges: the inverse.

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
    if tuple(pieces[:3]) != SPECIAL or tuple(pieces[3:259]) != BYTES or _merges(pieces, scores) != merges:
        raise refusal
    return pieces, scores


def _scores(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Scores of the pieces that merges make, each one lower; equal where the merges of several pieces are mixed."""
    last = {"".join(pair): index for index, pair in enumerate(merges)}
    score: dict[str, float] = {}
    current, end = 0.0, -1
    for index, pair in enumerate(merges):
        if index > end:
            current = -float(len(score))
        end = max(end, last["".join(pair)])
        score.setdefault("".join(pair), current)
    return score


def _is_ours(config: Path) -> bool:
    return config.is_file() and json.loads(config.read_text("utf-8")).get("model_type") == "anyorder"
