"""Checkpoints, a file a format: Hugging Face's, llama2.c's and GGUF are read and written, Meta's are read."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anyorder.checkpoints import gguf, gguf_reader, huggingface, llama2c, meta, weights
from anyorder.checkpoints.changes import Changes
from anyorder.checkpoints.contents import check_finite, contents_of
from anyorder.checkpoints.gguf_file import SUFFIX
from anyorder.checkpoints.hub import fetch
from anyorder.checkpoints.masked_diffusion import named_form
from anyorder.checkpoints.places import is_file, is_folder
from anyorder.checkpoints.tokenizer import has_tokenizer, load_tokenizer, save_tokenizer, write_tokenizer
from anyorder.checkpoints.weights import Checkpoint, SplitOf
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.utils.annotations import checked, refuse_other_names, shown
from anyorder.utils.files import check_place, whole_file, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

__all__ = [
    "Checkpoint",
    "convert",
    "fetch",
    "has_tokenizer",
    "load",
    "load_model",
    "load_tokenizer",
    "read_checkpoint",
    "save_model",
    "save_tokenizer",
    "write_tokenizer",
]


def read_checkpoint(path: str | Path, *, revision: str | None = None, token: str | None = None) -> Checkpoint:
    """Open a Hugging Face or Meta folder, a llama2.c or GGUF file, or a model on the hub: configuration and headers.

    Args:
        path: the folder or file, or the id of a model on the hub, which is fetched into the local cache.
        revision, token: for the hub, see `fetch`.

    Raises:
        UserError: it is missing, damaged or of a kind that is not supported.
    """
    path = fetch(path, revision, token)
    if is_folder(path):
        # Some models on the hub have both forms of configuration, and weights in one form.
        in_metas_form = (path / meta.PARAMS).is_file() and not any(path.glob("*.safetensors"))
        return meta.read(path) if in_metas_form else huggingface.read(path)
    if not is_file(path):  # also where no file can have this name
        raise UserError(f"checkpoint {shown(str(path))} is no folder or file here: check the path.")
    if path.suffix in (".json", ".txt", ".md", ".yaml", ".yml", ".py"):
        raise UserError(f"checkpoint {str(path)!r} is no file of weights: give the folder that it is in.")
    if path.suffix in BESIDE:
        raise UserError(f"checkpoint {str(path)!r} is weights alone: give the folder, with {BESIDE[path.suffix]}.")
    return gguf_reader.read(path) if path.suffix == SUFFIX else llama2c.read(path)


BESIDE = {".safetensors": "config.json beside them", ".pth": "params.json beside them"}


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    backend: str = "auto",
    revision: str | None = None,
    token: str | None = None,
) -> Llama:
    """Read a network from a Hugging Face or Meta folder, a llama2.c or GGUF file or the hub, tensor by tensor.

    Args:
        path: the folder or file, or the id of a model on the hub.
        dtype: of the weights, such as "bfloat16"; "auto" keeps that of the file, float32 where it is quantized.
        device: such as "cpu" or "cuda:1"; "auto" takes a GPU where there is one.
        backend: the attention backend.
        revision, token: for the hub, see `fetch`.

    Raises:
        UserError: the checkpoint is missing, damaged or not supported, or `dtype`, `device` or `backend` is unknown.
    """
    checkpoint = read_checkpoint(path, revision=revision, token=token)
    return weights.load(checkpoint, dtype=dtype, device=device, backend=backend)


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    backend: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    split: SplitOf | None = None,
) -> tuple[Llama, PreTrainedTokenizerBase | None]:
    """Read a network and its tokenizer, which is None where the checkpoint has none and none is named.

    Args:
        path: the folder or file, or the id of a model on the hub.
        tokenizer: where the tokenizer is, if not in the checkpoint's folder.
        dtype, device, backend, revision, token: see `load_model`.
        split: which part of each weight is read, and the parameter that it becomes; all of each unless given.

    Raises:
        UserError: either cannot be read, or the tokenizer is not the network's.
    """
    checkpoint, found = _read_both(path, tokenizer, revision, token)
    return weights.load(checkpoint, dtype=dtype, device=device, backend=backend, split=split), found


def save_model(
    model: Llama,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: int | None = None,
    form: str | None = None,
) -> None:
    """Write a network into a new or empty folder in Hugging Face's form, or as a file; whole or not at all.

    Args:
        model: the network.
        path: the folder, or a name that ends in .bin (llama2.c) or .gguf (llama.cpp).
        tokenizer: is written into the same folder or the same `.gguf`.
        max_shard_size: bytes of one file of weights; a single file unless given.
        form: such as "llada" or "dream": as those models are published.

    Raises:
        UserError: the place is taken or named as a file of weights of another kind, the weights are int8, have an
            adapter or fit no configuration, the tokenizer has more tokens than the network, or the form or the file's
            format cannot express the network.
    """
    path = Path(path)
    _refuse_weights_alone(path)
    as_published = None if form is None else named_form(form)
    contents = contents_of(model)
    check_finite(contents)
    if tokenizer is not None and len(tokenizer) > contents.config.vocab_size:  # which `load` would refuse
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, but the network {contents.config.vocab_size} embeddings: give "
            "the tokenizer that it was trained with, or add embeddings (transformers' resize_token_embeddings)."
        )
    if path.suffix not in FILES:
        with whole_folder(path) as partial:
            huggingface.write(model, partial, max_shard_size, as_published)
            if tokenizer is not None:
                write_tokenizer(tokenizer, partial)
        return
    _refuse_of_folders(path, max_shard_size=max_shard_size, form=form)
    if path.suffix == SUFFIX:
        gguf.write(model, path, tokenizer)
        return
    _refuse_of_folders(path, tokenizer=tokenizer)
    with whole_file(path) as partial:
        llama2c.write(model, partial)


FILES = {".bin": "a llama2.c file of weights alone", SUFFIX: "a GGUF file"}
"""Names of files that are written end in one of these; all others are folders."""


def _refuse_of_folders(path: Path, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name} is given for {str(path)!r}, {FILES[path.suffix]}: leave it out.")


@checked()
def convert(
    source: str | Path,
    target: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    max_shard_size: int | None = None,
    form: str | None = None,
    revision: str | None = None,
    **changes: Any,
) -> None:
    """Read a checkpoint of any form and write a Hugging Face folder, a llama2.c `.bin` or a `.gguf` of llama.cpp.

    Args:
        source: a Hugging Face or Meta folder, a llama2.c or GGUF file, or the id of a model on the hub.
        target: a new or empty folder, or a new name that ends in .bin or .gguf.
        tokenizer: a folder, a llama2.c tokenizer file, or a SentencePiece or tiktoken model, to be written into the
            target; that of the source folder unless given.
        dtype: of the weights that are written; "auto" keeps that of the source. A `.bin` holds float32 alone, a
            `.gguf` no float64.
        max_shard_size: bytes of one file of weights; a single file unless given.
        form: such as "llada" or "dream": writes the folder as those models are published.
        revision: a branch, tag or commit of a model on the hub. One that needs a token is read with `fetch` first.
        changes: of the network, the fields of `Changes`: kv_heads, pooling, widen, experts, expert_sample, seed.

    Raises:
        UserError: the source cannot be read, the target is taken, cannot be written or cannot hold the network, its
            dtype or its tokenizer, the tokenizer is not the network's, or the changes cannot be made.
    """
    parameters = {**inspect.signature(Changes).parameters, **inspect.signature(convert).parameters}
    del parameters["changes"]
    refuse_other_names("convert", changes, parameters)
    changed = Changes(**changes)
    target = Path(target)
    to_folder = target.suffix not in FILES
    check_place(target, folder=to_folder)  # before minutes are spent on reading
    _refuse_weights_alone(target)
    if target.suffix in FILES:
        _check_dtype(target, dtype)
        _refuse_of_folders(target, max_shard_size=max_shard_size, form=form)
    if form is not None:
        named_form(form)
    checkpoint, found = _read_both(
        source, tokenizer, revision, None, wanted=target.suffix != ".bin" or tokenizer is not None
    )
    changed.check(checkpoint.config)
    if target.suffix == SUFFIX and found is None:
        logger.warning("no tokenizer is beside the checkpoint or named, so %s takes and gives token ids alone", target)
    model = weights.load(checkpoint, dtype=dtype, device="cpu", backend="auto")
    model = changed.made(model, found)
    save_model(model, target, tokenizer=found, max_shard_size=max_shard_size, form=form)


WEIGHTS_ALONE = (".safetensors", ".pt", ".pth", ".ckpt")
"""Names of files of weights, which no folder is meant to have."""


def _refuse_weights_alone(target: Path) -> None:
    """Refuse a target that is named as a file of weights of another kind than those that are written."""
    if target.suffix in WEIGHTS_ALONE:
        raise UserError(f"target is {str(target)!r}: give a folder, or a file whose name ends in .bin or .gguf.")


def _check_dtype(target: Path, dtype: str | torch.dtype) -> None:
    """Refuse a dtype that the file to be written cannot hold."""
    dtypes = (torch.float32,) if target.suffix == ".bin" else tuple(gguf.DTYPES)
    if dtype != "auto" and weights.resolve_dtype(dtype) not in dtypes:
        name, *held = (str(each).removeprefix("torch.") for each in (weights.resolve_dtype(dtype), *dtypes))
        what = FILES[target.suffix].removesuffix(" of weights alone")
        raise UserError(f"dtype is {name!r}, but {what} holds {weights.listed(held)}: give that, or write a folder.")


def _read_both(
    path: str | Path, tokenizer: str | Path | None, revision: str | None, token: str | None, *, wanted: bool = True
) -> tuple[Checkpoint, PreTrainedTokenizerBase | None]:
    """Return a checkpoint, no weights yet, and its tokenizer, if it has one and one is wanted."""
    checkpoint = read_checkpoint(path, revision=revision, token=token)
    if not wanted:
        return checkpoint, None
    if tokenizer is None and has_tokenizer(checkpoint.path):
        tokenizer = checkpoint.path
    if tokenizer is None:
        return checkpoint, None
    found = load_tokenizer(tokenizer, token=token)
    _check_vocabulary(len(found), checkpoint, tokenizer)
    return checkpoint, found


def _check_vocabulary(tokens: int, checkpoint: Checkpoint, tokenizer: str | Path) -> None:
    embeddings = checkpoint.config.vocab_size
    # Folders and GGUF files may have more embeddings than tokens, for the sake of even sizes; others have one for each.
    may_exceed = checkpoint.path.suffix == SUFFIX or (checkpoint.path / huggingface.CONFIG).is_file()
    if tokens > embeddings or (tokens < embeddings and not may_exceed):
        raise UserError(
            f"tokenizer {str(tokenizer)!r} has {tokens} tokens, but the network in {str(checkpoint.path)!r} has "
            f"{embeddings}: give the tokenizer that it was trained with."
        )
