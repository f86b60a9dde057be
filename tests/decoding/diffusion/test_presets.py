"""Published samplers by name, and the orders "diffusion" and "blocks"; their tokens stand in `test_diffusion`."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import anyorder
from anyorder import DiffusionSampler
from anyorder.decoding.diffusion.commit import Factor, PerStep, Threshold, Timesteps
from anyorder.decoding.diffusion.sampler import PRESETS
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.model.rope import Rotary

MASK = 30


@functools.cache
def network(*modes: Mode) -> Llama:
    config = ModelConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        rotary=Rotary(theta=100.0),
        initializer_range=0.4,
        modes=modes,
        eos_token_ids=(2,),
    )
    torch.manual_seed(0)
    return Llama(config).double()


def test_presets_are_what_they_are_called() -> None:
    assert DiffusionSampler.preset("llada").block_length is None
    assert DiffusionSampler.preset("llada-semi-ar").block_length == 32
    assert DiffusionSampler.preset("dream-entropy").commit == Timesteps()
    sampler = DiffusionSampler.preset(
        "llada", steps=32, block_length=8, temperature=0.5, cfg_scale=1.5, remasking="random", cache="prefix"
    )
    assert (sampler.steps, sampler.block_length, sampler.temperature) == (32, 8, 0.5)
    assert (sampler.cfg_scale, sampler.confidence, sampler.cache) == (1.5, "random", "prefix")
    assert DiffusionSampler.preset("llada", remasking="low_confidence").confidence == "probability"
    assert DiffusionSampler.preset("fast-dllm").cache == "dual"
    assert DiffusionSampler.preset("fast-dllm", steps=8).commit == PerStep()
    assert DiffusionSampler.preset("fast-dllm", factor=1.0).commit == Factor(1.0, last_together=True)
    assert DiffusionSampler.preset("llada", factor=1.0).commit == Factor(1.0)
    assert DiffusionSampler.preset("llada", threshold=0.9, cache="dual").commit == Threshold(0.9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lada", {}, f"preset is 'lada': choose one of {', '.join(PRESETS)}."),
        (
            "llada",
            {"remasking": "low"},
            "remasking is 'low': choose one of low_confidence, random, maskgit_plus, topk_margin, entropy, "
            "probability, margin.",
        ),
        ("fast-dllm", {"threshold": 0.9, "factor": 1.0}, "threshold is 0.9 beside factor 1.0: give one of them."),
        ("llada", {"threshold": 2}, "threshold is 2: give a number from 0 to 1."),
    ],
)
def test_presets_that_cannot_be_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        DiffusionSampler.preset(name, **options)
    assert str(caught.value) == message


def test_the_default_order_of_a_network_that_diffuses() -> None:
    model = network(diffusion(MASK))
    out = anyorder.generate(model, None, [[1, 3], [4]], max_new_tokens=6)
    assert [len(ids) for ids in out.token_ids] == [6, 6]
    assert out.passes == 6
    same = anyorder.generate(
        model,
        None,
        [[1, 3], [4]],
        order=DiffusionSampler.preset("fast-dllm", cache="none", block_length=6),
        max_new_tokens=6,
    )
    assert same.token_ids == out.token_ids


def test_a_list_of_samplers_for_one_prompt() -> None:
    model = network(diffusion(MASK))
    sampler = DiffusionSampler(temperature=1.0)
    out = anyorder.generate(model, None, [1, 3], order=sampler, max_new_tokens=6, num_samples=3, seed=1)
    assert len({tuple(ids) for ids in out.token_ids}) == 3
    one_by_one = anyorder.generate(
        model, None, [1, 3], order="diffusion", temperature=1.0, max_new_tokens=6, num_samples=3, seed=1, batch_size=1
    )
    assert one_by_one.token_ids == out.token_ids


def test_blocks_with_and_without_their_exact_cache() -> None:
    model = network(blocks(MASK, 4))
    out = anyorder.generate(model, None, [1, 3], order="blocks", max_new_tokens=12)
    assert out.token_ids == anyorder.generate(model, None, [1, 3], order="blocks:4", max_new_tokens=12).token_ids
    assert out.token_ids == anyorder.generate(model, None, [1, 3], max_new_tokens=12, use_cache=False).token_ids


ORDERS = (
    "give one of left-to-right, any-order, groups:N, right-to-left:N, random:N, halves, spaced:N, spans:N, "
    "confidence:N, diffusion, blocks:N, where :N, a number above 0, may be left out."
)


@pytest.mark.parametrize(
    ("modes", "options", "message"),
    [
        (
            (LEFT_TO_RIGHT,),
            {"order": "diffusion"},
            "this network writes by 'left-to-right', not by 'diffusion': train it for that from this checkpoint, with "
            "`anyorder pretrain --objective masked-diffusion`.",
        ),
        (
            (LEFT_TO_RIGHT,),
            {"order": DiffusionSampler()},
            "this network writes by 'left-to-right', not by 'diffusion': train it for that from this checkpoint, with "
            "`anyorder pretrain --objective masked-diffusion`.",
        ),
        (
            (diffusion(MASK),),
            {"order": "diffusion:8"},
            f"order is 'diffusion:8': {ORDERS}",
        ),
        (
            (blocks(MASK, 4),),
            {"order": "blocks:x"},
            f"order is 'blocks:x': {ORDERS}",
        ),
        (
            (diffusion(MASK),),
            {"order": DiffusionSampler(), "temperature": 0.5},
            "temperature is 0.5 beside a sampler: give it in the DiffusionSampler.",
        ),
        (
            (diffusion(MASK),),
            {"min_p": 0.5, "temperature": 1.0},
            "min_p is 0.5, which diffusion does not know: leave it out, or give top_k or top_p.",
        ),
        (
            (diffusion(MASK),),
            {"top_k": 5},
            "top_k is 5 at temperature 0, where the most probable token is taken: give a temperature above 0, or "
            "leave out top_k.",
        ),
        (
            (diffusion(MASK),),
            {"order": DiffusionSampler(temperature=0.5), "top_p": 0.5},
            "top_p is 0.5 beside a sampler: give it in the DiffusionSampler.",
        ),
        (
            (diffusion(MASK),),
            {"num_beams": 3},
            "num_beams is 3, but beams are written from left to right: leave it out.",
        ),
    ],
)
def test_orders_that_cannot_be_are_refused(modes: tuple[Mode, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        anyorder.generate(network(*modes), None, [1, 3], max_new_tokens=4, **options)
    assert str(caught.value) == message


def test_filters_need_a_temperature_unless_confidence_is_filtered_too() -> None:
    with pytest.raises(
        UserError, match=r"^top_p is 0\.9 at temperature 0, where the most probable token is taken: give"
    ):
        DiffusionSampler.preset("llada").replace(top_p=0.9)
    assert DiffusionSampler.preset("dream-entropy").replace(top_p=0.9).top_p == 0.9
    assert DiffusionSampler(top_p=1.0).top_p == 1.0
