"""Checkpoints: one file per format, each with its names as data, a reader and a writer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anyorder.checkpoints import huggingface, llama2c, weights
from anyorder.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from anyorder.checkpoints.weights import Checkpoint
from anyorder.checkpoints.whole import whole_file, whole_folder
from anyorder.errors import UserError
from anyorder.model.llama import Llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Checkpoint",
    "convert",
    "load_model",
    "load_tokenizer",
    "read_checkpoint",
    "save_model",
    "save_tokenizer",
]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a Hugging Face folder or a llama2.c file: configuration and headers, no weights yet.

    Raises:
        UserError: it is missing, damaged or of a kind that is not supported.
    """
    path = Path(path)
    if path.is_dir():
        return huggingface.read(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r} is no folder or file here: check the path.")
    if path.suffix == ".safetensors":
        raise UserError(f"checkpoint {str(path)!r} is weights alone: give the folder, with config.json beside them.")
    return llama2c.read(path)


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    backend: str = "auto",
) -> Llama:
    """Reads a network from a Hugging Face folder or a llama2.c file, tensor by tensor.

    Args:
        path: the folder or file.
        dtype: of the weights, such as "bfloat16"; "auto" keeps that of the file.
        device: such as "cpu" or "cuda:1"; "auto" takes a GPU where there is one.
        backend: the attention backend.

    Raises:
        UserError: the checkpoint is missing, damaged or not supported, or `dtype`, `device` or `backend` is unknown.
    """
    return weights.load(read_checkpoint(path), dtype=dtype, device=device, backend=backend)


def save_model(
    model: Llama,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Writes a network into a new or empty folder in Hugging Face's form, or as a llama2.c `.bin`; whole or not at all.

    Args:
        model: the network.
        path: the folder, or a name that ends in .bin.
        tokenizer: is written into the same folder.
        max_shard_size: bytes of one file of weights; a single file unless given.

    Raises:
        UserError: the place is taken, or llama2.c's format cannot express the network.
    """
    path = Path(path)
    if path.suffix != ".bin":
        with whole_folder(path) as partial:
            huggingface.write(model, partial, max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
        return
    for name, value in (("tokenizer", tokenizer), ("max_shard_size", max_shard_size)):
        if value is not None:
            raise UserError(f"{name} is given for {str(path)!r}, a llama2.c file of weights alone: leave it out.")
    with whole_file(path) as partial:
        llama2c.write(model, partial)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    max_shard_size: int | None = None,
) -> None:
    """Reads a checkpoint of either form and writes another: a Hugging Face folder, or a llama2.c `.bin`.

    Args:
        source: a folder or a llama2.c file.
        target: a new or empty folder, or a new name that ends in .bin.
        tokenizer: a folder, a llama2.c tokenizer file or a SentencePiece model, to be written into the target folder;
            that of the source folder unless given.
        dtype: of the weights that are written; "auto" keeps that of the source.
        max_shard_size: bytes of one file of weights; a single file unless given.

    Raises:
        UserError: the source cannot be read, the target is taken, or the tokenizer is not the network's.
    """
    source, target = Path(source), Path(target)
    if tokenizer is None and target.suffix != ".bin" and _has_tokenizer(source):
        tokenizer = source
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    checkpoint = read_checkpoint(source)
    if loaded is not None:
        _check_vocabulary(len(loaded), checkpoint, tokenizer)
    model = weights.load(checkpoint, dtype=dtype, device="cpu", backend="auto")
    save_model(model, target, tokenizer=loaded, max_shard_size=max_shard_size)


def _check_vocabulary(tokens: int, checkpoint: Checkpoint, tokenizer: str | Path | None) -> None:
    embeddings = checkpoint.config.vocab_size
    # Folders may have more embeddings than tokens, for the sake of even sizes; llama2.c has one for each.
    if tokens > embeddings or (tokens < embeddings and not checkpoint.path.is_dir()):
        raise UserError(
            f"tokenizer {str(tokenizer)!r} has {tokens} tokens, but the network in {str(checkpoint.path)!r} has "
            f"{embeddings}: give the tokenizer that it was trained with."
        )


def _has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
