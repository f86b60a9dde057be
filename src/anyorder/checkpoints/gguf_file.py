"""GGUF files as the package `gguf` opens them, and llama.cpp's names and order of weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyorder.errors import UserError

SUFFIX = ".gguf"

OF_NETWORK = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of modules in `model.layers.N.` and in `blk.N.`."""

ROPE_FACTORS = "rope_freqs.weight"
"""What llama.cpp divides the frequencies of rotary embeddings by, one for each pair."""

END_KINDS = ("eos", "eot", "eom")
"""A file has one token of each, and llama.cpp ends a text at any of them."""


def side_by_side(weight_OX: Tensor, head_dim: int) -> Tensor:
    """Reorder outputs that are rotated together, (f, f + head_dim / 2) of each head, to llama.cpp's (2 f, 2 f + 1).

    Args:
        weight_OX: weights `[heads * head_dim, inputs]`, or a bias `[heads * head_dim]`.
        head_dim: outputs of a head.
    """
    return weight_OX.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def half_apart(weight_OX: Tensor, head_dim: int) -> Tensor:
    """Undo `side_by_side`."""
    return weight_OX.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


@lru_cache(maxsize=1)
def _opened(path: Path, size: int, changed_at: int) -> Any:
    """Open a file; the last one stays open, since reading headers of large vocabularies takes seconds."""
    from gguf import GGUFReader

    return GGUFReader(path)


class GGUFFile:
    """An open file.

    Attributes:
        architecture: llama.cpp's name.
        tensors: what the package `gguf` knows of each, by name.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UserError("GGUF files need the package gguf: install it (pip install 'anyorder[gguf]').") from error
        self.path = path
        self._dequantize: Callable[[Any, Any], Any] = gguf.quants.dequantize
        self._plain = {
            gguf.GGMLQuantizationType.F64: torch.float64,
            gguf.GGMLQuantizationType.F32: torch.float32,
            gguf.GGMLQuantizationType.F16: torch.float16,
            gguf.GGMLQuantizationType.BF16: torch.bfloat16,
        }
        try:
            status = path.stat()
            reader = _opened(path.resolve(), status.st_size, status.st_mtime_ns)
        # Damaged headers end in whatever their numbers lead to.
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError, TypeError) as error:
            raise self.damaged(str(error) or type(error).__name__) from error
        self._fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = str(self.required("general.architecture"))

    def damaged(self, reason: str) -> UserError:
        """Return what to raise where the file cannot be read."""
        reason = " ".join(reason.split()).rstrip(".")[:200]
        return UserError(f"{str(self.path)!r} is no whole GGUF file ({reason}): fetch it again.")

    def field(self, name: str) -> Any:
        """Return a field in Python's types; None where there is none."""
        field = self._fields.get(name)
        if field is None:
            return None
        try:
            value = field.contents()
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise self.damaged(f"field {name!r} cannot be read") from error
        # Numbers are float32; 1e-05 and not 9.999999747378752e-06 was meant.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def required(self, name: str) -> Any:
        """Return a field that each file must have."""
        value = self.field(name)
        if value is None:
            raise self.damaged(f"it lacks the field {name!r}")
        return value

    def dtype_of(self, tensor: Any) -> torch.dtype:
        """Return the dtype in which a tensor is read: float32 where it is quantized."""
        return self._plain.get(tensor.tensor_type, torch.float32)

    def weight(self, tensor: Any) -> Tensor:
        """Read a tensor, dequantized, into memory of its own."""
        shape = tuple(map(int, reversed(tensor.shape)))
        if tensor.tensor_type in self._plain:
            dtype = self._plain[tensor.tensor_type]
            raw = np.array(tensor.data).reshape(-1)
            return torch.from_numpy(raw.view(np.uint8)).view(dtype).reshape(shape)
        try:
            return torch.from_numpy(np.array(self._dequantize(tensor.data, tensor.tensor_type), np.float32))
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise UserError(
                f"tensor {tensor.name!r} of {str(self.path)!r} is {kind}, which the package gguf does not read: "
                "give a file of another type, such as Q8_0."
            ) from error
