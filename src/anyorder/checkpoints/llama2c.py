"""llama2.c's `.bin` files (github.com/karpathy/llama2.c): float32 weights, in the legacy form and in version 1.

Shape suffixes: H heads, K head dimension, P = K / 2 pairs, E hidden size.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from anyorder.checkpoints.contents import EMBEDDING, Contents, contents_of
from anyorder.checkpoints.layouts import to_halves, to_interleaved
from anyorder.checkpoints.weights import Checkpoint
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary

LEGACY, VERSION_1 = 0, 1

MAGIC = 0x616B3432
"""The first word of a file of version 1 or above, "ak42"; legacy files begin with the hidden size."""

HEADER_BYTES = {LEGACY: 28, VERSION_1: 256}

NAMES = {
    "tok_embeddings": "model.embed_tokens.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "wq": "model.layers.{}.self_attn.q_proj.weight",
    "wk": "model.layers.{}.self_attn.k_proj.weight",
    "wv": "model.layers.{}.self_attn.v_proj.weight",
    "wo": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "w1": "model.layers.{}.mlp.gate_proj.weight",
    "w2": "model.layers.{}.mlp.down_proj.weight",
    "w3": "model.layers.{}.mlp.up_proj.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
}
"""llama2.c's tensors under Hugging Face's names; {} is the layer."""

ROTATED = ("wq", "wk")
"""Their rows are in interleaved pairs there and in halves here."""

ORDER = {
    LEGACY: (
        "tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm",
        "freqs_cos", "freqs_sin", "output",
    ),
    VERSION_1: (
        "attention_norm", "ffn_norm", "norm", "tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "output",
    ),
}  # fmt: skip
"""The tensors of a file in their order, each for all layers; `output` only if the head is not tied."""

FIXED: dict[str, Any] = {
    "rotary": Rotary(theta=10_000.0),
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_ids": (2, 1),
}
"""What run.c takes for granted. It stops at `<s>`, which parts the stories that its networks learnt from."""

NOT_KEPT = ("initializer_range", "bos_token_id", "eos_token_ids", "pad_token_id")
"""Fields that no file holds and that leave the logits as they are."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first words of a file, under llama2.c's names."""

    version: int
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_classifier: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each kind of tensor, in the order of the file; the same in each layer."""
        head_dim = self.dim // self.n_heads
        kv_dim = self.n_kv_heads * head_dim
        frequencies = (self.seq_len, head_dim // 2)
        shapes: dict[str, tuple[int, ...]] = {
            "tok_embeddings": (self.vocab_size, self.dim),
            "attention_norm": (self.dim,),
            "wq": (self.dim, self.dim),
            "wk": (kv_dim, self.dim),
            "wv": (kv_dim, self.dim),
            "wo": (self.dim, self.dim),
            "ffn_norm": (self.dim,),
            "w1": (self.hidden_dim, self.dim),
            "w2": (self.dim, self.hidden_dim),
            "w3": (self.hidden_dim, self.dim),
            "norm": (self.dim,),
            "freqs_cos": frequencies,
            "freqs_sin": frequencies,
            "output": (self.vocab_size, self.dim),
        }
        return {kind: shapes[kind] for kind in ORDER[self.version] if kind != "output" or not self.shared_classifier}

    def count(self, kind: str) -> int:
        """Return how many tensors of a kind there are."""
        return self.n_layers if "{}" in NAMES.get(kind, "") else 1

    @property
    def file_bytes(self) -> int:
        """The size that a file with this header has."""
        numbers = sum(self.count(kind) * math.prod(shape) for kind, shape in self.shapes.items())
        return HEADER_BYTES[self.version] + 4 * numbers

    def tensors(self) -> Iterator[tuple[str, int, str]]:
        """Yield kind, layer and name here of each tensor; the name is "" for tables that follow from the header."""
        for kind in self.shapes:
            for layer in range(self.count(kind)):
                yield kind, layer, NAMES.get(kind, "").format(layer)

    def to_config(self) -> ModelConfig:
        """Return the network that the file holds."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.dim,
            intermediate_size=self.hidden_dim,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            max_position_embeddings=self.seq_len,
            tie_word_embeddings=self.shared_classifier,
            **FIXED,
        )


def read(path: Path) -> Checkpoint:
    """Open a file of either version: its header, checked against its size.

    Raises:
        UserError: it is no llama2.c file, of another version, or its size is not what its header says.
    """
    header = read_header(path)
    offsets: dict[str, int] = {}
    kinds: dict[str, str] = {}
    offset = HEADER_BYTES[header.version]
    for kind, _, name in header.tensors():
        offsets[name], kinds[name] = offset, kind
        offset += 4 * math.prod(header.shapes[kind])
    kinds.pop("", None)

    def read_tensor(name: str) -> Tensor:
        weight = torch.empty(header.shapes[kinds[name]])
        with path.open("rb") as file:
            file.seek(offsets[name])
            file.readinto(weight.numpy().data)
        return to_halves(weight, header.dim // header.n_heads) if kinds[name] in ROTATED else weight

    return Checkpoint(
        path=path,
        config=header.to_config(),
        shapes={name: header.shapes[kind] for name, kind in kinds.items()},
        dtypes=dict.fromkeys(kinds, torch.float32),
        read=read_tensor,
    )


LARGEST = 10**8
"""Of the sizes in a header; text that is read as one has numbers of nine digits."""


def read_header(path: Path) -> Header:
    """Return the header of a file, checked against its size.

    Raises:
        UserError: it is no llama2.c file, of another version, or its size is not what its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES[VERSION_1]).ljust(HEADER_BYTES[VERSION_1], b"\0")
    magic, version = struct.unpack_from("<Ii", start)
    if magic != MAGIC:
        version = LEGACY
    elif version != VERSION_1:
        raise UserError(f"{str(path)!r} is a llama2.c file of version {version}: export it as version 0 or 1.")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, shared = struct.unpack_from(
        "<7iB", start, 0 if version == LEGACY else 8
    )
    if version == LEGACY:
        shared, vocab_size = vocab_size > 0, abs(vocab_size)
    sizes = {
        "dim": dim, "hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads,
        "vocab_size": vocab_size, "seq_len": seq_len,
    }  # fmt: skip
    for name, value in sizes.items():
        if not 1 <= value <= LARGEST:
            raise UserError(f"{str(path)!r} says that {name} is {value}: give a llama2.c checkpoint, this is none.")
    header = Header(version=version, shared_classifier=bool(shared), **sizes)
    if header.file_bytes != size:
        raise UserError(
            f"{str(path)!r} has {size} bytes, but a llama2.c file with its header has {header.file_bytes}: fetch it "
            "again, if it is one at all."
        )
    try:
        header.to_config()
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error
    return header


def write(model: Llama, path: Path, version: int = LEGACY) -> None:
    """Write a network as a llama2.c file at `path`, by default in the form that run.c reads.

    Raises:
        UserError: the format cannot express the network, or see `contents_of`.
    """
    contents = contents_of(model)
    header = _header_of(contents, version)
    weights = contents.tensors
    with path.open("wb") as file:
        _write_header(file, header)
        for kind, _, name in header.tensors():
            weight = weights[name].detach().float().cpu() if name else _frequency_table(header, kind)
            if kind in ROTATED:
                weight = to_interleaved(weight, header.dim // header.n_heads)
            file.write(weight.contiguous().numpy().data)


def _header_of(contents: Contents, version: int) -> Header:
    config = contents.config
    if version not in ORDER:
        raise UserError(f"version is {version!r}: give 0 (legacy, which run.c reads) or 1.")
    if contents.tensors[EMBEDDING].dtype == torch.float64:
        raise UserError("dtype is torch.float64: llama2.c files hold float32, so load the network as float32 first.")
    header = Header(
        version=version,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        seq_len=config.max_position_embeddings,
        shared_classifier=config.tie_word_embeddings,
    )
    head_dim = config.hidden_size // config.num_attention_heads
    if config.head_dim != head_dim:
        raise UserError(f"configuration field 'head_dim' is {config.head_dim}: a llama2.c file holds {head_dim} only.")
    possible = header.to_config()
    for field in dataclasses.fields(ModelConfig):
        value = getattr(config, field.name)
        if field.name not in NOT_KEPT and value != getattr(possible, field.name):
            raise UserError(
                f"configuration field {field.name!r} is {value!r}: a llama2.c file can hold "
                f"{getattr(possible, field.name)!r} only, so write a folder instead."
            )
    return header


def _write_header(file: BinaryIO, header: Header) -> None:
    legacy = header.version == LEGACY
    vocab_size = -header.vocab_size if legacy and not header.shared_classifier else header.vocab_size
    words = struct.pack(
        "<7i", header.dim, header.hidden_dim, header.n_layers, header.n_heads, header.n_kv_heads, vocab_size,
        header.seq_len,
    )  # fmt: skip
    if not legacy:
        words = struct.pack("<Ii", MAGIC, header.version) + words + bytes([header.shared_classifier])
    file.write(words.ljust(HEADER_BYTES[header.version], b"\0"))


def _frequency_table(header: Header, kind: str) -> Tensor:
    """Return cosines or sines of every position's angles, float32 `[positions, pairs]`; computed as llama2.c does."""
    head_dim = header.dim // header.n_heads
    frequency_P = 1.0 / (10_000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim))
    angle_LP = torch.outer(torch.arange(header.seq_len), frequency_P)
    return angle_LP.cos() if kind == "freqs_cos" else angle_LP.sin()


# ------------------------------------------------------------------------------------------------ tokenizer files

SPECIAL_PIECES = {b"\n<s>\n": "<s>", b"\n</s>\n": "</s>"}
"""What llama2.c writes for the begin and end token."""


def read_pieces(path: Path) -> tuple[list[str], list[float]]:
    """Return the pieces of a tokenizer file in the order of their ids, as SentencePiece writes them, and their scores.

    Raises:
        UserError: the file is no tokenizer, or not whole.
    """
    data = path.read_bytes()
    refusal = UserError(f"{str(path)!r} is no whole llama2.c tokenizer file: give one, such as tokenizer.bin.")
    if len(data) < 4:
        raise refusal
    (longest,) = struct.unpack_from("<i", data)
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        if len(data) < at + 8:
            raise refusal
        score, length = struct.unpack_from("<fi", data, at)
        piece = data[at + 8 : at + 8 + max(length, 0)]
        at += 8 + length
        if not 0 < length <= longest or at > len(data) or not math.isfinite(score):
            raise refusal
        try:
            pieces.append(SPECIAL_PIECES.get(piece) or piece.decode().replace(" ", "▁"))
        except UnicodeDecodeError as error:
            raise refusal from error
        scores.append(score)
    return pieces, scores


def write_pieces(pieces: Sequence[str], scores: Sequence[float], path: Path) -> None:
    """Write a tokenizer file: the inverse of `read_pieces`."""
    names = {piece: data for data, piece in SPECIAL_PIECES.items()}
    encoded = [names.get(piece) or piece.replace("▁", " ").encode() for piece in pieces]
    with path.open("wb") as file:
        file.write(struct.pack("<i", max(map(len, encoded))))
        for piece, score in zip(encoded, scores, strict=True):
            file.write(struct.pack("<fi", score, len(piece)) + piece)
