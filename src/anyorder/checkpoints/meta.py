"""Meta's folders of dense Llamas: `params.json` beside `consolidated.NN.pth`, one or several.

Several are the shards of tensor parallelism: each has its part of every matrix, and all of every norm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from anyorder.checkpoints.layouts import to_halves
from anyorder.checkpoints.meta_names import KINDS, ROWS, in_one_form, is_name
from anyorder.checkpoints.meta_params import Params, read_params, rotary_of, special_tokens, trained_length
from anyorder.checkpoints.pickled import load_pickled
from anyorder.checkpoints.weights import Checkpoint, counted
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig

PARAMS = "params.json"

SHARD = "consolidated.{:02d}.pth"

EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"
QUERIES, GATE = "layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight"

ROTATED = re.compile(r"layers\.\d+\.attention\.w[qk]\.weight")
"""Their rows are in interleaved pairs there and in halves here."""

SHARE_MAPPED, LEAST_MAPPED = 1 / 20, 2**22
"""How much of a file (of its bytes, and bytes) is read before it is opened anew, which frees what was read."""


def read(folder: Path) -> Checkpoint:
    """Opens a folder: configuration and shapes.

    Raises:
        UserError: a file is missing, damaged, holds more than tensors, or is of a kind that is not supported.
    """
    params = read_params(folder / PARAMS)
    files = _shard_files(folder)
    shards = [_Shard(file, params.dim // len(files)) for file in files]
    _check_shards(shards, params, folder)
    names = {theirs: _name(theirs) for theirs in shards[0].tensors}
    divided = {theirs: _divided(theirs, shards, params.dim) for theirs in names}
    parts = {theirs: shards[:: _copies(theirs, shards, params)] for theirs in names}
    shapes = {
        theirs: tuple(
            size * (len(parts[theirs]) if dimension == divided[theirs] else 1)
            for dimension, size in enumerate(shards[0].tensors[theirs].shape)
        )
        for theirs in names
    }
    tied = HEAD not in names or _same(EMBEDDING, HEAD, shards)
    if tied:
        names.pop(HEAD, None)
    try:
        config = _config(params, shapes, tied, folder)
    except UserError as error:
        raise UserError(f"{str(folder / PARAMS)!r}: {error}") from error

    theirs_of = {ours: theirs for theirs, ours in names.items()}

    def read_tensor(name: str) -> Tensor:
        theirs = theirs_of[name]
        dimension = divided[theirs]
        # A copy, since the file may change, and since its pages stay in memory while they are used.
        if dimension is None:
            return shards[0].read(theirs).clone()
        weight = torch.cat([shard.read(theirs) for shard in parts[theirs]], dimension)
        return to_halves(weight, config.head_dim) if ROTATED.fullmatch(theirs) else weight

    return Checkpoint(
        path=folder,
        config=config,
        shapes={ours: shapes[theirs] for theirs, ours in names.items()},
        dtypes={ours: shards[0].tensors[theirs].dtype for theirs, ours in names.items()},
        read=read_tensor,
    )


def _config(params: Params, shapes: dict[str, tuple[int, ...]], tied: bool, folder: Path) -> ModelConfig:
    vocab_size = shapes[EMBEDDING][0] if params.vocab_size == -1 else params.vocab_size
    rotary = rotary_of(params, vocab_size, tied)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=params.dim,
        intermediate_size=shapes[GATE][0],
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads or params.n_heads,
        max_position_embeddings=trained_length(params, rotary),
        rms_norm_eps=params.norm_eps,
        rotary=rotary,
        layers=params.layers,
        qk_norm="weightless" if params.use_qk_norm else "none",
        tie_word_embeddings=tied,
        **special_tokens(folder / "tokenizer.model", vocab_size),
    )


# ------------------------------------------------------------------------------------------------ shards


class _Shard:
    """One file of weights, mapped into memory, so that only what is used is read."""

    def __init__(self, file: Path, query_rows: int) -> None:
        self.file = file
        self.query_rows = query_rows
        self.tensors = self._open()
        self.bytes_read = 0

    def _open(self) -> dict[str, Tensor]:
        return in_one_form(load_pickled(self.file, is_name), self.query_rows, str(self.file))

    def read(self, name: str) -> Tensor:
        """A tensor, still in the file: copy it before the next one is read."""
        if self.bytes_read > max(LEAST_MAPPED, SHARE_MAPPED * self.file.stat().st_size):
            self.tensors = {}  # before the file is opened again: unmapped, its pages count no longer
            self.tensors = self._open()
            self.bytes_read = 0
        self.bytes_read += self.tensors[name].nbytes
        return self.tensors[name]


def _shard_files(folder: Path) -> list[Path]:
    pattern = re.compile(r"consolidated\.(\d+)\.pth")
    numbers = [int(match[1]) for file in folder.iterdir() if (match := pattern.fullmatch(file.name))]
    if not numbers:
        raise UserError(f"folder {str(folder)!r} has a {PARAMS} but no {SHARD.format(0)}: complete it.")
    return [folder / SHARD.format(number) for number in range(max(numbers) + 1)]


def _check_shards(shards: Sequence[_Shard], params: Params, folder: Path) -> None:
    """Whether the shards are all of one network's, and have all that it needs."""
    first = shards[0]
    for shard in shards[1:]:
        different = first.tensors.keys() ^ shard.tensors.keys()
        if different:
            raise UserError(
                f"{counted(sorted(different))} in only one of {str(first.file)!r} and {shard.file.name!r}: fetch both "
                "again, from one place."
            )
        for name, tensor in first.tensors.items():
            if tensor.shape != shard.tensors[name].shape:
                raise UserError(
                    f"tensor {name!r} has shape {list(tensor.shape)} in {str(first.file)!r}, but "
                    f"{list(shard.tensors[name].shape)} in {shard.file.name!r}: fetch both again, from one place."
                )
    needed = [kind.format(layer) for kind in KINDS for layer in range(params.n_layers if "{}" in kind else 1)]
    missing = [name for name in needed if name not in first.tensors and name != HEAD]
    if missing:
        raise UserError(
            f"checkpoint {str(folder)!r} lacks {counted(missing)}: complete it, or mend n_layers in {PARAMS}."
        )
    for name in needed:
        dimensions = 1 if name.endswith("norm.weight") else 2
        if name in first.tensors and first.tensors[name].dim() != dimensions:
            shape = list(first.tensors[name].shape)
            raise UserError(f"tensor {name!r} in {str(first.file)!r} has shape {shape}: fetch it again.")
    rows = first.tensors[QUERIES].shape[0]
    wanted = params.dim // rows if rows and params.dim % rows == 0 else len(shards)
    if wanted != len(shards):
        raise UserError(
            f"folder {str(folder)!r} has {len(shards)} of {wanted} files of weights, as the {rows} rows of {QUERIES!r} "
            f"and dim, which is {params.dim}, tell: fetch {SHARD.format(0)} to {SHARD.format(wanted - 1)}."
        )


def _name(theirs: str) -> str:
    """The name here, or Meta's where there is none, to be refused with it."""
    layer = re.match(r"layers\.(\d+)\.", theirs)
    kind = KINDS.get(f"layers.{{}}.{theirs[layer.end() :]}" if layer else theirs)
    return theirs if kind is None else kind.name.format(layer[1] if layer else "")


def _divided(theirs: str, shards: Sequence[_Shard], dim: int) -> int | None:
    """Which dimension of a tensor the shards divide."""
    if theirs == EMBEDDING and shards[0].tensors[theirs].shape[-1] == dim:
        return ROWS
    kind = KINDS.get(re.sub(r"^layers\.\d+\.", "layers.{}.", theirs))
    return None if kind is None else kind.divided


def _copies(theirs: str, shards: Sequence[_Shard], params: Params) -> int:
    """How many shards in a row have the same part: more than one where there are fewer key heads than shards."""
    if not theirs.endswith(("attention.wk.weight", "attention.wv.weight")):
        return 1
    rows = params.dim // params.n_heads * (params.n_kv_heads or params.n_heads)
    return max(1, len(shards) * shards[0].tensors[theirs].shape[0] // max(rows, 1))


def _same(one: str, other: str, shards: Sequence[_Shard]) -> bool:
    """Whether two tensors hold the same numbers, which their first rows deny in most cases."""
    pairs = [(shard.tensors[one], shard.tensors[other]) for shard in shards]
    alike = all(a.shape == b.shape and torch.equal(a[:8], b[:8]) for a, b in pairs)
    return alike and all(torch.equal(shard.read(one), shard.read(other)) for shard in shards)
