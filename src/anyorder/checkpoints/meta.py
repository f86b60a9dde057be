"""Meta's folders: `params.json` beside `consolidated.NN.pth`, one or several.

Several are the shards of tensor parallelism: each has its part of every matrix, and all of every norm. What each tensor
is called and how it is divided is data: see `meta_names`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyorder.checkpoints.layouts import to_halves
from anyorder.checkpoints.meta_names import (
    LAYER,
    OF_DENSE,
    OF_EXPERTS,
    OF_LAYER,
    OF_NETWORK,
    OF_VISION,
    OF_VISION_LAYER,
    ROWS,
    VISION_LAYER,
    Kind,
    is_name,
    known_names,
)
from anyorder.checkpoints.meta_params import Params, read_params, rotary_of, special_tokens, trained_length
from anyorder.checkpoints.pickled import load_pickled
from anyorder.checkpoints.weights import Checkpoint, counted
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig

PARAMS = "params.json"

SHARD = "consolidated.{:02d}.pth"

SCALES = "*_scales_*.pt"
"""Files beside weights that are quantised, such as int4_scales_0.pt."""

EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"
QUERIES = "layers.0.attention.wq.weight"

SHARE_MAPPED, LEAST_MAPPED = 1 / 20, 2**22
"""How much of a file (of its bytes, and bytes) is read before it is opened anew, which frees what was read."""


def read(folder: Path) -> Checkpoint:
    """Opens a folder: configuration and shapes.

    Raises:
        UserError: a file is missing, damaged, holds more than tensors, or is of a kind that is not supported.
    """
    params = read_params(folder / PARAMS)
    if scales := sorted(file.name for file in folder.glob(SCALES)):
        remedy = "give the weights as they were before they were rounded"
        raise UserError(f"folder {str(folder)!r} has {scales[0]!r}, so its weights are quantised: {remedy}.")
    files = _shard_files(folder)
    shards = [_Shard(file, params, params.dim // len(files)) for file in files]
    _check_shards(shards, params, folder)
    tied = HEAD not in shards[0].kinds or _same(EMBEDDING, HEAD, shards)
    joined = _joined(shards, params, leave_out=HEAD if tied else None)
    shapes = {name: tensor.shape for name, tensor in joined.items()}
    try:
        config = _config(params, shapes, tied, folder)
    except UserError as error:
        raise UserError(f"{str(folder / PARAMS)!r}: {error}") from error
    return Checkpoint(
        path=folder,
        config=config,
        shapes=shapes,
        dtypes={name: tensor.dtype for name, tensor in joined.items()},
        read=lambda name: joined[name].read(config.head_dim),
    )


def _config(params: Params, shapes: dict[str, tuple[int, ...]], tied: bool, folder: Path) -> ModelConfig:
    vocab_size = shapes["model.embed_tokens.weight"][0] if params.vocab_size == -1 else params.vocab_size
    rotary = rotary_of(params, vocab_size, tied)
    dense = [shape[0] for name, shape in shapes.items() if name.endswith(".mlp.gate_proj.weight")]
    wide = [shape[1] // 2 for name, shape in shapes.items() if name.endswith(".mlp.experts.gate_up_proj")]
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=params.dim,
        intermediate_size=dense[0] if dense else params.dense_width,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads or params.n_heads,
        max_position_embeddings=trained_length(params, rotary),
        rms_norm_eps=params.norm_eps,
        rotary=rotary,
        layers=params.layers,
        experts=params.experts(wide[0]) if wide else None,
        vision=params.vision(vocab_size),
        qk_norm="weightless" if params.use_qk_norm else "none",
        tie_word_embeddings=tied,
        **special_tokens(params, folder / "tokenizer.model", vocab_size),
    )


# ------------------------------------------------------------------------------------------------ shards


class _Shard:
    """One file of weights, mapped into memory, so that only what is used is read.

    Attributes:
        tensors: its parts as they are laid out here, still in the file, under the names of the tables.
        kinds: the kind of each; None for those that no table has.
    """

    def __init__(self, file: Path, params: Params, query_rows: int) -> None:
        self.file = file
        self.params = params
        self.query_rows = query_rows
        self._open()

    def _open(self) -> None:
        named = known_names(load_pickled(self.file, is_name), self.query_rows, str(self.file))
        experts = 0 if self.params.moe_args is None else self.params.moe_args.num_experts
        self.kinds = {name: kind for name, (_, kind) in named.items()}
        self.tensors = {
            name: part if kind is None else kind.ours(part, experts) for name, (part, kind) in named.items()
        }
        self.bytes_read = 0

    def read(self, name: str) -> Tensor:
        """A tensor, still in the file: copy it before the next one is read."""
        if self.bytes_read > max(LEAST_MAPPED, SHARE_MAPPED * self.file.stat().st_size):
            self.tensors = {}  # before the file is opened again: unmapped, its pages count no longer
            self._open()
        self.bytes_read += self.tensors[name].nbytes
        return self.tensors[name]


@dataclass(frozen=True, kw_only=True)
class _Joined:
    """A tensor here, of which the files hold parts.

    Attributes:
        parts: in their order, each the shard that it is in and its name there.
        divided: the dimension along which they are joined; None: there is one.
        rotated: see `Kind`.
    """

    parts: Sequence[tuple[_Shard, str]]
    divided: int | None
    rotated: bool

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = list(self._first.shape)
        if self.divided is not None:
            sizes[self.divided] = sum(shard.tensors[name].shape[self.divided] for shard, name in self.parts)
        return tuple(sizes)

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    @property
    def _first(self) -> Tensor:
        shard, name = self.parts[0]
        return shard.tensors[name]

    def read(self, head_dim: int) -> Tensor:
        """The tensor, in memory of its own; its parts are copied one by one, so that no part is there twice."""
        weight = torch.empty(self.shape, dtype=self.dtype)
        start = 0
        for shard, name in self.parts:
            part = shard.read(name)
            length = part.numel() if self.divided is None else part.shape[self.divided]
            (weight if self.divided is None else weight.narrow(self.divided, start, length)).copy_(part)
            start += length
        return to_halves(weight, head_dim) if self.rotated else weight


def _joined(shards: Sequence[_Shard], params: Params, leave_out: str | None) -> dict[str, _Joined]:
    """The tensors of a network by their names here; those that no table has by Meta's, to be refused with them."""
    order = {name: number for number, name in enumerate(_needed(params))}
    found: dict[str, _Joined] = {}
    for theirs, kind in sorted(shards[0].kinds.items(), key=lambda pair: order.get(pair[0], len(order))):
        if theirs == leave_out:
            continue
        name = theirs if kind is None else kind.name
        divided = _divided(theirs, kind, shards, params.dim)
        holders = shards[:1] if divided is None else shards[:: _copies(theirs, shards, params)]
        before = found[name].parts if name in found else ()
        parts = (*before, *((shard, theirs) for shard in holders))
        found[name] = _Joined(parts=parts, divided=divided, rotated=kind is not None and kind.rotated)
    return found


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
    needed = _needed(params)
    missing = [name for name in needed if name not in first.tensors and name != HEAD]
    if missing:
        said = ", ".join(["n_layers", *(name for name in ("moe_args", "vision_args") if getattr(params, name))])
        raise UserError(
            f"checkpoint {str(folder)!r} lacks {counted(missing)}: complete it, or mend {said} in {PARAMS}."
        )
    for name, kind in needed.items():
        if name in first.tensors and first.tensors[name].dim() != _dimensions(kind):
            shape = list(first.tensors[name].shape)
            raise UserError(f"tensor {name!r} in {str(first.file)!r} has shape {shape}: fetch it again.")
    rows = first.tensors[QUERIES].shape[0]
    wanted = params.dim // rows if rows and params.dim % rows == 0 else len(shards)
    if wanted != len(shards):
        raise UserError(
            f"folder {str(folder)!r} has {len(shards)} of {wanted} files of weights, as the {rows} rows of {QUERIES!r} "
            f"and dim, which is {params.dim}, tell: fetch {SHARD.format(0)} to {SHARD.format(wanted - 1)}."
        )


def _needed(params: Params) -> dict[str, Kind]:
    """The tensors of a network, by their names in the tables."""
    needed = dict(OF_NETWORK)
    for number, layer in enumerate(params.layers):
        own = OF_LAYER | (OF_EXPERTS if layer.experts else OF_DENSE)
        needed |= {LAYER.format(number) + name: kind for name, kind in own.items()}
    if params.vision_args is None:
        return needed
    for number in range(params.vision_args.n_layers):
        needed |= {VISION_LAYER.format(number) + name: kind for name, kind in OF_VISION_LAYER.items()}
    return needed | OF_VISION


def _dimensions(kind: Kind) -> int:
    if ".experts." in kind.name:
        return 3
    return (
        1
        if kind.name.endswith(("norm.weight", "norm_pre.weight", "norm_post.weight", "bias", "class_embedding"))
        else 2
    )


def _divided(theirs: str, kind: Kind | None, shards: Sequence[_Shard], dim: int) -> int | None:
    """Which dimension of a tensor the shards divide."""
    if theirs == EMBEDDING and shards[0].tensors[theirs].shape[-1] == dim:
        return ROWS
    dimensions = shards[0].tensors[theirs].dim()
    return None if kind is None or kind.divided is None or kind.divided >= dimensions else kind.divided


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
