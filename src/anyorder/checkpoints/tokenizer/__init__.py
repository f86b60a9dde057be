"""Tokenizers on disk: one file per form, all read into Hugging Face fast tokenizers.

`tokenizer.json` decides the token ids wherever it exists, whatever class `tokenizer_config.json` names.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.checkpoints import llama2c
from anyorder.checkpoints.gguf_file import SUFFIX
from anyorder.checkpoints.hub import fetch
from anyorder.checkpoints.json_files import read_json, write_json
from anyorder.checkpoints.tokenizer import gguf
from anyorder.checkpoints.tokenizer.folder import TOKENIZER, load_built, load_tokenizer_json, with_settings
from anyorder.checkpoints.tokenizer.pieces import BYTES, SPECIAL, pieces_tokenizer, tokenizer_pieces
from anyorder.checkpoints.tokenizer.sentencepiece import sentencepiece_backend
from anyorder.checkpoints.tokenizer.settings import CONFIG, Settings, read_settings
from anyorder.checkpoints.tokenizer.tiktoken import LLAMA3_SPECIAL, is_tiktoken, read_ranks, tiktoken_backend
from anyorder.errors import UserError
from anyorder.utils.files import whole_file, whole_folder

if TYPE_CHECKING:  # importing transformers' tokenizers takes a second, which networks alone need not wait for
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = [
    "BYTES",
    "LLAMA3_SPECIAL",
    "SPECIAL",
    "has_tokenizer",
    "is_tiktoken",
    "load_tokenizer",
    "pieces_tokenizer",
    "read_ranks",
    "save_tokenizer",
    "write_tokenizer",
]

MODEL = "tokenizer.model"

FILES = (TOKENIZER, MODEL, CONFIG)
"""A folder that has one of these has a tokenizer."""


def has_tokenizer(path: str | Path) -> bool:
    """Return whether a folder, or a GGUF file, has a tokenizer."""
    if Path(path).suffix == SUFFIX:
        return gguf.holds_tokenizer(Path(path))
    return any((Path(path) / name).is_file() for name in FILES)


def load_tokenizer(
    path: str | Path, *, revision: str | None = None, token: str | None = None
) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a Hugging Face folder, a llama2.c `.bin`, a SentencePiece or a tiktoken `.model`.

    A folder's `tokenizer.json` decides the ids; without it, its `tokenizer.model` with the added tokens of
    `added_tokens.json` and `tokenizer_config.json`. Special tokens written out in a text become those tokens, as is
    usual in Hugging Face; with the keyword `split_special_tokens=True` they are plain text, as in SentencePiece,
    tiktoken and llama2.c.

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
        if (path / TOKENIZER).is_file():
            return load_tokenizer_json(path)
        if (path / MODEL).is_file():
            return _load_model(path / MODEL, read_settings(path))
        if (path / CONFIG).is_file():
            return load_built(path)
        raise UserError(f"folder {str(path)!r} has no tokenizer.json: name the file or folder of the tokenizer.")
    if path.suffix == ".model":
        return _load_model(path, Settings())
    if path.suffix == SUFFIX:
        return _of_gguf(path)
    pieces, scores = llama2c.read_pieces(path)
    try:
        return pieces_tokenizer(pieces, scores)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error


def _of_gguf(path: Path) -> PreTrainedTokenizerBase:
    tokenizer = gguf.read_tokenizer(path)
    if tokenizer is None:
        raise UserError(f"{str(path)!r} holds no tokenizer: name the file or folder of one.")
    return tokenizer


def _load_model(path: Path, settings: Settings) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a SentencePiece or tiktoken file, with the settings of its folder."""
    backend, special = (
        tiktoken_backend(path) if is_tiktoken(path) else sentencepiece_backend(path, legacy=settings.legacy)
    )
    has_normalized = any(token.normalized for token in backend.get_added_tokens_decoder().values())
    return with_settings(backend, settings.completed(special).with_normalized(has_normalized), path)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Write a tokenizer into a folder, which may hold a checkpoint already, or as a llama2.c `.bin`.

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
            write_tokenizer(tokenizer, partial)
    elif not path.is_dir():
        raise UserError(f"output {str(path)!r} is a file: give a folder, or a name that ends in .bin.")
    elif (path / TOKENIZER).exists():
        raise UserError(f"folder {str(path)!r} has a tokenizer.json already: give another folder, or delete it first.")
    else:
        with tempfile.TemporaryDirectory(dir=path, prefix=".tokenizer.") as partial_name:
            write_tokenizer(tokenizer, Path(partial_name))
            for file in sorted(Path(partial_name).iterdir()):
                file.replace(path / file.name)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files into a folder, under a class that reads `tokenizer.json` as it is.

    transformers' model-specific classes, such as `LlamaTokenizer`, build another tokenizer from the vocabulary in
    `tokenizer.json`, so they may not be named beside it.
    """
    tokenizer.save_pretrained(folder)
    if (folder / TOKENIZER).is_file():
        fields = read_json(folder / CONFIG)
        fields.pop("auto_map", None)  # code that would come before the class
        write_json(folder / CONFIG, fields | {"tokenizer_class": "PreTrainedTokenizerFast"})
