"""Meta's folders of Llama 1 to 3: `params.json` beside `consolidated.NN.pth`, one or several.

Several are the shards of tensor parallelism: each has its part of every matrix, and all of every norm.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.llama2c import to_halves
from anyorder.checkpoints.tokenizer import LLAMA3_SPECIAL, is_tiktoken
from anyorder.checkpoints.weights import DTYPES, Checkpoint, counted, listed
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.rope import Llama3Rotary, Rotary

Json = dict[str, Any]

PARAMS = "params.json"

SHARD = "consolidated.{:02d}.pth"

ROWS, COLUMNS = 0, 1
"""Which dimension of a matrix the shards divide."""


@dataclass(frozen=True)
class Kind:
    """A kind of tensor: its name here, {} for the layer, and what the shards divide (None: each has all of it)."""

    name: str
    divided: int | None = None


KINDS = {
    "tok_embeddings.weight": Kind("model.embed_tokens.weight", COLUMNS),
    "layers.{}.attention_norm.weight": Kind("model.layers.{}.input_layernorm.weight"),
    "layers.{}.attention.wq.weight": Kind("model.layers.{}.self_attn.q_proj.weight", ROWS),
    "layers.{}.attention.wk.weight": Kind("model.layers.{}.self_attn.k_proj.weight", ROWS),
    "layers.{}.attention.wv.weight": Kind("model.layers.{}.self_attn.v_proj.weight", ROWS),
    "layers.{}.attention.wo.weight": Kind("model.layers.{}.self_attn.o_proj.weight", COLUMNS),
    "layers.{}.ffn_norm.weight": Kind("model.layers.{}.post_attention_layernorm.weight"),
    "layers.{}.feed_forward.w1.weight": Kind("model.layers.{}.mlp.gate_proj.weight", ROWS),
    "layers.{}.feed_forward.w2.weight": Kind("model.layers.{}.mlp.down_proj.weight", COLUMNS),
    "layers.{}.feed_forward.w3.weight": Kind("model.layers.{}.mlp.up_proj.weight", ROWS),
    "norm.weight": Kind("model.norm.weight"),
    "output.weight": Kind("lm_head.weight", ROWS),
}
"""Meta's tensors. Llama 3 divides the embedding by rows, which shows in its shape."""

EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"
QUERIES, GATE = "layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight"

ROTATED = re.compile(r"layers\.\d+\.attention\.w[qk]\.weight")
"""Their rows are in interleaved pairs there and in halves here."""

IGNORED = re.compile(r"(.*\.)?rope\.freqs")
"""A table that follows from the configuration."""

REQUIRED = ("dim", "n_layers", "n_heads")

OPTIONAL: Json = {
    "n_kv_heads": None,
    "vocab_size": -1,
    "norm_eps": 1e-5,
    "rope_theta": None,
    "use_scaled_rope": False,
    "rope_scaling_factor": None,
    "max_seq_len": None,
}
"""Fields of `params.json` that may be missing or null, with Meta's values; -1 and None are "see the tensors"."""

WITHOUT_MEANING = ("multiple_of", "ffn_dim_multiplier", "max_batch_size")
"""Fields that add nothing: the width of the feed-forward network is that of its tensors."""

LLAMA2_VOCABULARY = 32_000
LLAMA2_THETA = 10_000.0
"""The base of Llama 1 and 2, whose `params.json` has none; code and tables of Meta have no other."""

SCALED: Json = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What `use_scaled_rope` means in Meta's code, but for the factor."""

FACTOR, FACTOR_IF_TIED = 8.0, 32.0
"""Llama 3.1 and 3.3 are stretched 8 times; the published configurations of Llama 3.2 (1B and 3B) say 32 times.

Their `params.json` does not tell them apart, but only these two have a head that is tied to the embedding.
"""

TRAINED_LENGTH = {10_000.0: 4096, 500_000.0: 8192, 1_000_000.0: 16_384}
"""Tokens, by the base: Llama 2, Llama 3, Code Llama. No file says it."""

SCALED_LENGTH = 131_072
LLAMA1_LENGTH, LLAMA1_EPS = 2048, 1e-6

LLAMA3_VOCABULARY = 128_256

ENDS_OF_LLAMA3 = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
"""At which of its tokens Meta's code stops to write, whether the network was tuned for chats or not."""

SHARE_MAPPED, LEAST_MAPPED = 1 / 20, 2**22
"""How much of a file (of its bytes, and bytes) is read before it is opened anew, which frees what was read."""


def read(folder: Path) -> Checkpoint:
    """Opens a folder: configuration and shapes.

    Raises:
        UserError: a file is missing, damaged, holds more than tensors, or is of a kind that is not supported.
    """
    params = read_params(folder / PARAMS)
    shards = [_Shard(file) for file in _shard_files(folder)]
    _check_shards(shards, params, folder)
    names = {theirs: _name(theirs) for theirs in shards[0].tensors}
    divided = {theirs: _divided(theirs, shards, params["dim"]) for theirs in names}
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


# ------------------------------------------------------------------------------------------------ params.json


def read_params(file: Path) -> Json:
    """The fields of a `params.json` that describe the network, checked one by one.

    Raises:
        UserError: it is not JSON, or a field is missing, wrong or unknown.
    """
    fields = read_json(file)
    given = {name: value for name, value in fields.items() if value is not None}
    for name in given:
        if name not in (*REQUIRED, *OPTIONAL, *WITHOUT_MEANING):
            raise UserError(
                f"field {name!r} in {str(file)!r} is unknown: this version reads Llama 1 to 3, so delete the field if "
                "it says nothing about the network."
            )
    for name in REQUIRED:
        if name not in given:
            raise UserError(f"field {name!r} in {str(file)!r} is missing: add it.")
    params = {name: given.get(name, OPTIONAL.get(name)) for name in (*REQUIRED, *OPTIONAL)}
    for name, value in params.items():
        if not _is_valid(name, value):
            kind = KINDS_OF_FIELDS.get(name, "a whole number above 0")
            raise UserError(f"field {name!r} in {str(file)!r} is {value!r}: give {kind}.")
    return params


KINDS_OF_FIELDS = {
    "vocab_size": "the number of tokens, or -1 for that of the embedding",
    "norm_eps": "a number above 0",
    "rope_theta": "a number above 0",
    "rope_scaling_factor": "a number above 0",
    "use_scaled_rope": "true or false",
}


def _is_valid(name: str, value: Any) -> bool:
    if name == "use_scaled_rope":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return False
    if value is None or (name == "vocab_size" and value == -1):
        return True
    whole = name not in ("norm_eps", "rope_theta", "rope_scaling_factor")
    return value > 0 and math.isfinite(value) and (isinstance(value, int) or not whole)


def _config(params: Json, shapes: dict[str, tuple[int, ...]], tied: bool, folder: Path) -> ModelConfig:
    vocab_size = shapes[EMBEDDING][0] if params["vocab_size"] == -1 else params["vocab_size"]
    rotary = _rotary(params, vocab_size, tied)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=params["dim"],
        intermediate_size=shapes[GATE][0],
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"] or params["n_heads"],
        max_position_embeddings=params["max_seq_len"] or _trained_length(params, rotary),
        rms_norm_eps=params["norm_eps"],
        rotary=rotary,
        tie_word_embeddings=tied,
        **_special_tokens(folder / "tokenizer.model", vocab_size),
    )


def _rotary(params: Json, vocab_size: int, tied: bool) -> Rotary:
    theta = params["rope_theta"]
    if theta is None:
        # Elsewhere the base cannot be known, and with a wrong one a network seems to work, but badly.
        if vocab_size != LLAMA2_VOCABULARY or params["use_scaled_rope"]:
            raise UserError(
                f"field 'rope_theta' is missing, which only Llama 1 and 2 with their {LLAMA2_VOCABULARY} tokens may do "
                f"without, but this network has {vocab_size}: add the base that was used in training, such as 500000 "
                "for Llama 3."
            )
        theta = LLAMA2_THETA
    if not params["use_scaled_rope"]:
        return Rotary(theta=theta)
    factor = params["rope_scaling_factor"] or (FACTOR_IF_TIED if tied else FACTOR)
    return Llama3Rotary(theta=theta, factor=factor, **SCALED)


def _trained_length(params: Json, rotary: Rotary) -> int:
    if params["use_scaled_rope"]:
        return SCALED_LENGTH
    if rotary.theta == LLAMA2_THETA and params["norm_eps"] == LLAMA1_EPS:
        return LLAMA1_LENGTH
    return TRAINED_LENGTH.get(rotary.theta, TRAINED_LENGTH[LLAMA2_THETA])


def _special_tokens(tokenizer: Path, vocab_size: int) -> Json:
    """The tokens that begin and end texts; they follow from the kind of tokenizer."""
    if vocab_size == LLAMA3_VOCABULARY or (tokenizer.is_file() and is_tiktoken(tokenizer)):
        first = vocab_size - len(LLAMA3_SPECIAL)
        ends = tuple(first + LLAMA3_SPECIAL.index(name) for name in ENDS_OF_LLAMA3)
        return {"bos_token_id": first, "eos_token_ids": ends}
    return {"bos_token_id": 1, "eos_token_ids": (2,)}


# ------------------------------------------------------------------------------------------------ shards


class _Shard:
    """One file of weights, mapped into memory, so that only what is used is read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tensors = _load(file)
        self.bytes_read = 0

    def read(self, name: str) -> Tensor:
        """A tensor, still in the file: copy it before the next one is read."""
        if self.bytes_read > max(LEAST_MAPPED, SHARE_MAPPED * self.file.stat().st_size):
            self.tensors = {}  # before the file is opened again: unmapped, its pages count no longer
            self.tensors, self.bytes_read = _load(self.file), 0
        self.bytes_read += self.tensors[name].nbytes
        return self.tensors[name]


def _load(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is ever run.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    if not file.is_file():
        raise UserError(f"weight file {str(file)!r} is missing: complete the folder.")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {code[1]}, which is no tensor and may be code" if code else "holds something else than tensors"
        raise UserError(
            f"weight file {str(file)!r} {what}; nothing of it was run: get the weights from a source that you trust."
        ) from error
    except Exception as error:  # PyTorch raises many kinds where an archive is broken
        size = file.stat().st_size
        raise UserError(
            f"weight file {str(file)!r} of {size} bytes is damaged, not whole, or no archive of torch.save: fetch it "
            "again."
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"weight file {str(file)!r} holds {type(loaded).__name__}, not tensors by name: give Meta's.")
    tensors = {name: tensor for name, tensor in loaded.items() if not IGNORED.fullmatch(str(name))}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise UserError(f"{name!r} in {str(file)!r} is of type {kind}, not a tensor: give Meta's weights alone.")
        if tensor.dtype not in DTYPES.values() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"tensor {name!r} in {str(file)!r} is stored as {kind}: store it as one of {listed(DTYPES)}."
            )
    return tensors


def _shard_files(folder: Path) -> list[Path]:
    pattern = re.compile(r"consolidated\.(\d+)\.pth")
    numbers = [int(match[1]) for file in folder.iterdir() if (match := pattern.fullmatch(file.name))]
    if not numbers:
        raise UserError(f"folder {str(folder)!r} has a {PARAMS} but no {SHARD.format(0)}: complete it.")
    return [folder / SHARD.format(number) for number in range(max(numbers) + 1)]


def _check_shards(shards: Sequence[_Shard], params: Json, folder: Path) -> None:
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
    needed = [kind.format(layer) for kind in KINDS for layer in range(params["n_layers"] if "{}" in kind else 1)]
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
    wanted = params["dim"] // rows if rows and params["dim"] % rows == 0 else len(shards)
    if wanted != len(shards):
        raise UserError(
            f"folder {str(folder)!r} has {len(shards)} of {wanted} files of weights, as the {rows} rows of {QUERIES!r} "
            f"and dim, which is {params['dim']}, tell: fetch {SHARD.format(0)} to {SHARD.format(wanted - 1)}."
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


def _copies(theirs: str, shards: Sequence[_Shard], params: Json) -> int:
    """How many shards in a row have the same part: more than one where there are fewer key heads than shards."""
    if not theirs.endswith(("attention.wk.weight", "attention.wv.weight")):
        return 1
    rows = params["dim"] // params["n_heads"] * (params["n_kv_heads"] or params["n_heads"])
    return max(1, len(shards) * shards[0].tensors[theirs].shape[0] // max(rows, 1))


def _same(one: str, other: str, shards: Sequence[_Shard]) -> bool:
    """Whether two tensors hold the same numbers, which their first rows deny in most cases."""
    pairs = [(shard.tensors[one], shard.tensors[other]) for shard in shards]
    alike = all(a.shape == b.shape and torch.equal(a[:8], b[:8]) for a, b in pairs)
    return alike and all(torch.equal(shard.read(one), shard.read(other)) for shard in shards)
