"""The one-token step: its parts here in seconds, compiled for real where `slow` says so."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import pytest
import torch

from anyorder.decoding.left_to_right import write_left_to_right
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model import step
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary
from anyorder.visibility import causal

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed layers": {"layers": (LayerKind(window=3), LayerKind(chunk=4), LayerKind(rotary=False))},
    "dynamic rotary": {
        "rotary": DynamicRotary(theta=100.0, factor=2.0, original_max_position_embeddings=64),
        "layers": (LayerKind(),) * 3,
    },
    "norms": {"qk_norm": "learned", "attention_bias": True, "layers": (LayerKind(),) * 3},
}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


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


def test_without_a_compiler_it_stays_eager(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = network(tiny_config, "plain")
    assert not step.pays_to_compile(model, 10_000)
    with pytest.raises(UserError, match=r"^compile is True, but no C\+\+ compiler is at hand: install g\+\+, or give"):
        write_left_to_right(model, [[1]], max_new_tokens=2, compile=True)
    assert len(write_left_to_right(model, [[1]], max_new_tokens=2).written[0]) == 2


def test_compiling_needs_the_cache(tiny_config: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"^compile is True and use_cache is False: leave one of them out"):
        write_left_to_right(network(tiny_config, "plain"), [[1]], max_new_tokens=2, compile=True, use_cache=False)


@needs_compiler
def test_it_is_compiled_unasked_only_where_much_is_written(tiny_config: ModelConfig) -> None:
    model = network(tiny_config, "plain")
    assert not step.pays_to_compile(model, step.WORTH_COMPILING - 1)
    assert step.pays_to_compile(model, step.WORTH_COMPILING)
    model.backend = "eager"
    assert not step.pays_to_compile(model, step.WORTH_COMPILING)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["plain", "mixed layers"])
def test_compiled_writes_what_eager_writes(
    tiny_config: ModelConfig, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One row and several, beyond the smallest extent, greedy and drawn, with rows that end early."""
    model = network(tiny_config.replace(max_position_embeddings=400), kind).double()
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    with caplog.at_level(logging.INFO, logger="anyorder"):
        for some in ([[1, 2]], prompts):
            for sampling in (Sampling(), Sampling(temperature=1.0, seed=3)):
                eager, compiled = (
                    write_left_to_right(
                        model, some, max_new_tokens=150, sampling=sampling, compile=how,
                        stop=lambda row, written: row == 1 and len(written) > 9,
                    )
                    for how in (False, True)
                )  # fmt: skip
                assert compiled.sequences == eager.sequences
                for a, b in zip(compiled.trace.events, eager.trace.events, strict=True):
                    assert a.log_prob == pytest.approx(b.log_prob, abs=1e-9)
    told = [record.message for record in caplog.records if "compiled the one-token step" in record.message]
    assert len(told) == 2  # one row, and several


@pytest.mark.slow
@needs_compiler
def test_compiled_int8_writes_what_eager_int8_writes(tiny_config: ModelConfig) -> None:
    model = to_int8(network(tiny_config, "plain"))
    eager, compiled = (write_left_to_right(model, [[1]], max_new_tokens=40, compile=how) for how in (False, True))
    assert compiled.sequences == eager.sequences
