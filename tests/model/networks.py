"""Small random networks of every kind of layer, and ragged batches for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import LinearRotary, Rotary

VOCABULARY = 31

FAST, SLOW = Rotary(theta=20.0), LinearRotary(theta=1000.0, factor=4.0)
"""Rotary embeddings of single layers."""

LAYERS: dict[str, tuple[LayerKind, ...]] = {
    "plain": (LayerKind(), LayerKind()),
    "NoPE": (LayerKind(), LayerKind(rotary=False)),
    "window": (LayerKind(window=3), LayerKind()),
    "own rotary": (
        LayerKind(), LayerKind(rotary=FAST, window=5), LayerKind(rotary=False), LayerKind(rotary=SLOW),
    ),
    "chunk": (LayerKind(chunk=4), LayerKind(rotary=False), LayerKind(chunk=4)),
    "experts": (
        LayerKind(chunk=4),
        LayerKind(rotary=False, query_scale=QueryScale(strength=0.5, period=3), experts=True),
        LayerKind(window=3, experts=True),
    ),
}  # fmt: skip


EXPERTS = Experts(
    number=6, chosen=2, width=10, score="sigmoid", normalise=True, scale=1.5, groups=3, kept_groups=2, shared_width=5
)


def network(layers: str = "plain", backend: str = "auto", seed: int = 0, **changes: object) -> Llama:
    """Grouped heads and weights large enough that attention matters."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=len(LAYERS[layers]),
        num_attention_heads=4,
        num_key_value_heads=2,
        rotary=Rotary(theta=100.0),
        layers=LAYERS[layers],
        experts=EXPERTS if any(kind.experts for kind in LAYERS[layers]) else None,
        initializer_range=0.4,
    )
    return Llama(config.replace(**changes), backend).eval()


def random_ids(*lengths: int) -> list[list[int]]:
    return [torch.randint(0, VOCABULARY, (length,)).tolist() for length in lengths]


def pad(rows: Sequence[Sequence[int]], left: bool = False, value: int = 0) -> tuple[Tensor, Tensor]:
    """A ragged batch as `[batch, longest]`, and which entries are no padding."""
    longest = max(map(len, rows))
    filled, valid = [], []
    for row in rows:
        more, less = [value] * (longest - len(row)), [False] * (longest - len(row))
        filled.append([*more, *row] if left else [*row, *more])
        valid.append([*less, *[True] * len(row)] if left else [*[True] * len(row), *less])
    return torch.tensor(filled, dtype=torch.int64), torch.tensor(valid, dtype=torch.bool)
