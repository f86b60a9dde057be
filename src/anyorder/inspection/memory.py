"""Memory that a network takes to write and to be trained, computed from its configuration; no weights are needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from anyorder.checkpoints import weights
from anyorder.errors import UserError
from anyorder.inspection.head_sharing import cache_bytes
from anyorder.model.config import ModelConfig
from anyorder.model.linear import Linear
from anyorder.utils.annotations import shown

__all__ = ["cache_bytes", "lora_bytes", "training_bytes", "weight_bytes"]

FLOAT32 = 4
TRAINED = 4 * FLOAT32
"""Bytes of a weight that AdamW trains: itself, its gradient and two moments, all float32."""

HEAD, LAYERS = "lm_head", "model.layers."


def weight_bytes(config: ModelConfig, dtype: str = "bfloat16", *, beside: str = "bfloat16") -> int:
    """Bytes of all weights.

    Args:
        config: of the network.
        dtype: "float32", "bfloat16", "float16" or "float64"; "int8" for 8-bit projections.
        beside: with "int8", the dtype of embeddings, norms, biases and scales: that of the checkpoint.

    Raises:
        UserError: weights are not kept in this dtype.
    """
    sizes = _sizes(config)
    if dtype != "int8":
        return sizes.parameters * _item_size("dtype", dtype, "int8")
    size = _item_size("beside", beside)
    rounded = sum(outputs * inputs for outputs, inputs in sizes.projections.values())
    scales = sum(outputs for outputs, _ in sizes.projections.values())
    kept = sizes.parameters - rounded
    if config.tie_word_embeddings:  # the head becomes a matrix of its own, since the embedding is not rounded
        kept += math.prod(sizes.projections[HEAD])
    return rounded + (kept + scales) * size


def _item_size(name: str, dtype: str, *others: str) -> int:
    """Return the bytes of a weight."""
    if dtype not in weights.DTYPES:
        raise UserError(f"{name} is {shown(dtype)}: give one of {weights.listed([*weights.DTYPES, *others])}.")
    return weights.DTYPES[dtype].itemsize


def training_bytes(config: ModelConfig) -> int:
    """Count the bytes of weights, gradients and AdamW's moments when all weights are trained, without activations."""
    return _sizes(config).parameters * TRAINED


def lora_bytes(config: ModelConfig, rank: int) -> int:
    """Count the same when low-rank adapters of this rank and query rows are trained, and all else is frozen."""
    sizes = _sizes(config)
    adapted = [shape for name, shape in sizes.projections.items() if name.startswith(LAYERS)]
    adapters = sum(rank * (outputs + inputs) for outputs, inputs in adapted)
    return (sizes.parameters - sizes.query_rows) * FLOAT32 + (adapters + sizes.query_rows) * TRAINED


@dataclass(frozen=True)
class _Sizes:
    """Numbers of weights.

    Attributes:
        parameters: all, tied ones once.
        query_rows: those of query rows.
        projections: outputs and inputs of each matrix, by its name.
    """

    parameters: int
    query_rows: int
    projections: Mapping[str, tuple[int, int]]


@functools.lru_cache(maxsize=64)
def _sizes(config: ModelConfig) -> _Sizes:
    model = weights.blank(config)
    rows = model.query_rows
    return _Sizes(
        parameters=sum(weight.numel() for weight in model.parameters()),
        query_rows=0 if rows is None else sum(weight.numel() for weight in rows.parameters()),
        projections={
            name: (module.out_features, module.in_features)
            for name, module in model.named_modules()
            if isinstance(module, Linear)
        },
    )
