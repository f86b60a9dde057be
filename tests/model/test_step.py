"""The one-token step, uncompiled; tests/model/test_compiled.py compiles it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyorder.model import step
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import DynamicRotary
from anyorder.visibility import causal
from tests.model.networks import EXPERTS

SCALE = QueryScale(strength=0.5, period=3)

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed layers": {"layers": (LayerKind(window=3), LayerKind(chunk=4), LayerKind(rotary=False))},
    "dynamic rotary": {
        "rotary": DynamicRotary(theta=100.0, factor=2.0, original_max_position_embeddings=64),
        "layers": (LayerKind(),) * 3,
    },
    "experts": {
        "layers": (
            LayerKind(experts=True),
            LayerKind(rotary=False, query_scale=SCALE, experts=True),
            LayerKind(chunk=4),
        ),
        "experts": EXPERTS,
    },
    "norms": {"qk_norm": "learned", "attention_bias": True, "layers": (LayerKind(),) * 3},
}


def network(tiny_config: ModelConfig, kind: str) -> Llama:
    changes = KINDS[kind] | {"num_hidden_layers": len(KINDS[kind].get("layers", (1, 2)))}
    return Llama(tiny_config.replace(**({"layers": ()} | changes))).eval()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_step_equals_the_parallel_pass(tiny_config: ModelConfig, kind: str, batch: int) -> None:
    model = network(tiny_config, kind)
    length = torch.tensor([7, 4, 1])[:batch]
    ids = torch.randint(0, tiny_config.vocab_size, (batch, 14))
    position = torch.arange(7).expand(batch, 7)
    cache = model.new_cache(batch, 20)
    with torch.no_grad():
        valid = position < length.unsqueeze(1)
        views = model.prepare(causal(), {"position": position}, valid=valid, cache=cache)
        model.hidden(ids[:, :7], views, cache)
        for taken in range(6):
            at = (length + taken).unsqueeze(1)
            present = torch.ones(batch, 1, dtype=torch.bool)
            logits = step.one_token(model, ids.gather(1, at), at, present, cache, 20)
            for row in range(batch):
                expected = model(ids[row : row + 1, : int(at[row]) + 1]).logits[0, -1]
                torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_rows_that_are_complete_change_nothing(tiny_config: ModelConfig) -> None:
    model = network(tiny_config, "plain")
    cache = model.new_cache(2, 8)
    ids = torch.tensor([[1], [2]])
    with torch.no_grad():
        step.one_token(model, ids, torch.zeros_like(ids), torch.tensor([[True], [False]]), cache, 8)
    assert cache.present.sum(1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("keys", "capacity", "extent"), [(1, 4096, 128), (128, 4096, 128), (129, 4096, 256), (300, 400, 400), (5, 20, 20)]
)
def test_few_extents(keys: int, capacity: int, extent: int) -> None:
    assert step.step_extent(keys, capacity) == extent
