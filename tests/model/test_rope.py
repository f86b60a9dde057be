"""Rotary embeddings: frequencies as transformers has them, angles that depend on distances only."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from anyorder.errors import UserError
from anyorder.model.rope import (
    ROTARY_EMBEDDINGS,
    DynamicRotary,
    LinearRotary,
    Llama3Rotary,
    Rotary,
    YarnRotary,
    registered_name,
    rotate,
)

HEAD_DIM = 16

TRAINED = 64
"""Tokens."""

LLAMA3: dict[str, Any] = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": TRAINED}

YARN_OPTIONS: dict[str, dict[str, Any]] = {
    "yarn": {},
    "yarn, other ramp": {"beta_fast": 8.0, "beta_slow": 2.0},
    "yarn, ramp not rounded": {"truncate": False},
    "yarn, given scale": {"attention_factor": 0.7},
    "yarn, DeepSeek's scale": {"mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, no longer than trained": {"factor": 1.0},
    "yarn, ramp of one point": {"original_max_position_embeddings": 4},
    "yarn, ramp turned round": {"original_max_position_embeddings": 1, "beta_fast": 1.0, "beta_slow": 32.0},
}

ROTARY: dict[str, Rotary] = {
    "rotary": Rotary(theta=10_000.0),
    "linear": LinearRotary(theta=500_000.0, factor=4.0),
    "dynamic": DynamicRotary(theta=10_000.0, factor=2.0, original_max_position_embeddings=TRAINED),
    "llama3": Llama3Rotary(theta=500_000.0, **LLAMA3),
    **{name: YarnRotary(theta=10_000.0, **{**YARN, **options}) for name, options in YARN_OPTIONS.items()},
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "rotary": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3},
    **{name: {"rope_type": "yarn", "rope_theta": 10_000.0, **YARN, **more} for name, more in YARN_OPTIONS.items()},
}


def transformers_rotary(name: str) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        head_dim=HEAD_DIM,
        max_position_embeddings=TRAINED,
        rope_parameters=PARAMETERS[name],
    )
    return LlamaRotaryEmbedding(config)


def test_every_kind_is_tried_here() -> None:
    assert ROTARY_EMBEDDINGS.keys() <= ROTARY.keys()
    assert {name: type(ROTARY[name]) for name in ROTARY_EMBEDDINGS} == ROTARY_EMBEDDINGS


@pytest.mark.parametrize("name", ROTARY)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    theirs = transformers_rotary(name)
    assert theirs.attention_scaling == pytest.approx(ROTARY[name].scale())
    expected: torch.Tensor = theirs.inv_freq
    frequencies = ROTARY[name].frequencies(HEAD_DIM)
    assert frequencies.dtype == torch.float64
    torch.testing.assert_close(frequencies.float(), expected, rtol=1e-6, atol=0)
    float32 = dataclasses.replace(ROTARY[name], float32_angles=True).frequencies(HEAD_DIM)
    torch.testing.assert_close(float32, expected, rtol=2e-7 if name.startswith("yarn") else 0, atol=0)


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("length", [1, TRAINED, TRAINED + 1, 3 * TRAINED])
def test_angles_are_those_of_transformers(name: str, length: int) -> None:
    """Scale, and growth with the length, included."""
    position = torch.arange(length).unsqueeze(0)
    ours = ROTARY[name].cos_sin(position, HEAD_DIM, torch.float32, torch.tensor([length]))
    theirs = transformers_rotary(name)(torch.zeros(1), position)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one[:, :, 0].repeat(1, 1, 2), other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("length", [TRAINED, 3 * TRAINED])
def test_float32_angles_are_those_of_transformers(name: str, length: int) -> None:
    """Operation by operation, where far positions show each of them."""
    position = torch.arange(length - 3, length).unsqueeze(0)
    rotary = dataclasses.replace(ROTARY[name], float32_angles=True)
    ours = rotary.cos_sin(position, HEAD_DIM, torch.float32, torch.tensor([length]))
    theirs = transformers_rotary(name)(torch.zeros(1), position)
    for one, other in zip(ours, theirs, strict=True):
        atol = 2e-5 if name.startswith("yarn") else 0
        torch.testing.assert_close(one[:, :, 0].repeat(1, 1, 2), other, rtol=0, atol=atol)


def test_each_text_has_the_base_of_its_own_length() -> None:
    rotary, lengths = ROTARY["dynamic"], torch.tensor([10, 2 * TRAINED, TRAINED])
    together = rotary.frequencies(HEAD_DIM, lengths)
    assert together.shape == (3, 1, HEAD_DIM // 2)
    for length, frequencies in zip(lengths, together, strict=True):
        assert torch.equal(rotary.frequencies(HEAD_DIM, length.unsqueeze(0))[0], frequencies)
    plain = ROTARY["rotary"].frequencies(HEAD_DIM)
    for unchanged in (0, 2):
        torch.testing.assert_close(together[unchanged, 0], plain, rtol=1e-12, atol=0)
    assert bool((together[1, 0, 1:] < plain[1:]).all())


def test_reach() -> None:
    """Those that are made for longer texts than they were trained on say how long."""
    dynamic = DynamicRotary(theta=1e4, factor=2.5, original_max_position_embeddings=TRAINED)
    assert dynamic.reach(TRAINED) == 160
    assert dynamic.reach(500) == 500
    yarn = YarnRotary(theta=1e4, factor=4.0, original_max_position_embeddings=TRAINED)
    assert yarn.reach(TRAINED) == yarn.reach(4 * TRAINED) == 4 * TRAINED
    assert Rotary(theta=1e4).reach(TRAINED) == TRAINED


@pytest.mark.parametrize("rotary", ROTARY.values(), ids=ROTARY.keys())
def test_scores_depend_on_distances_only(rotary: Rotary) -> None:
    """In float64, however far from the origin; this is what lets slots stand anywhere."""
    q, k = torch.randn(2, 1, 6, 1, HEAD_DIM, dtype=torch.float64)
    position = torch.randint(0, 50, (1, 6))

    def scores(shift: int) -> torch.Tensor:
        cos, sin = rotary.cos_sin(position + shift, HEAD_DIM, torch.float64)
        return rotate(q, cos, sin)[0, :, 0] @ rotate(k, cos, sin)[0, :, 0].T / rotary.scale() ** 2

    torch.testing.assert_close(scores(0), scores(37), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores(0), scores(100_000), rtol=0, atol=1e-9)


def test_rotation_keeps_lengths_and_leaves_position_zero() -> None:
    x = torch.randn(2, 3, 4, HEAD_DIM, dtype=torch.float64)
    cos, sin = Rotary(theta=1e4).cos_sin(torch.tensor([[0, 1, 2], [5, 0, 9]]), HEAD_DIM, torch.float64)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[0, 0], x[0, 0])
    assert torch.equal(turned[1, 1], x[1, 1])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[1, 2], x[1, 2])


def test_angles_are_cast_last() -> None:
    """Position 100,000 in float32 angles is off by 1e-3 radians or more; ours are right to the last bit."""
    position = torch.tensor([[100_000]])
    exact = Rotary(theta=1e4).cos_sin(position, HEAD_DIM, torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        ours = Rotary(theta=1e4).cos_sin(position, HEAD_DIM, dtype)
        assert ours[0].dtype == dtype
        assert torch.equal(ours[0], exact[0].to(dtype))
        assert torch.equal(ours[1], exact[1].to(dtype))
    like_transformers = Rotary(theta=1e4, float32_angles=True).cos_sin(position, HEAD_DIM, torch.float32)
    assert float((like_transformers[0] - exact[0]).abs().max()) > 1e-5


def test_linear_is_a_slower_clock() -> None:
    position = torch.arange(0, 40, 4).unsqueeze(0)
    slow = LinearRotary(theta=1e4, factor=4.0).cos_sin(position, HEAD_DIM, torch.float64)
    plain = Rotary(theta=1e4).cos_sin(position // 4, HEAD_DIM, torch.float64)
    torch.testing.assert_close(slow, plain, rtol=0, atol=1e-12)


def test_llama3_keeps_short_waves_and_slows_long_ones() -> None:
    plain = Rotary(theta=500_000.0).frequencies(64)
    ratio = ROTARY["llama3"].frequencies(64) / plain
    assert float(ratio[0]) == 1.0
    torch.testing.assert_close(float(ratio[-1]), 1 / 8)
    assert bool((ratio.diff() <= 0).all())
    assert bool(((ratio > 1 / 8 + 1e-9) & (ratio < 1)).any())


def test_names() -> None:
    assert {registered_name(rotary) for rotary in ROTARY.values()} == set(ROTARY_EMBEDDINGS)

    class Unregistered(Rotary):
        pass

    with pytest.raises(UserError, match="rotary is of the kind Unregistered: register it in ROTARY_EMBEDDINGS under a"):
        registered_name(Unregistered(theta=1e4))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Rotary, {"theta": 0.0}, "rotary field 'theta' is 0.0: give a number above 0"),
        (Rotary, {"theta": float("nan")}, "rotary field 'theta' is nan: give a number above 0"),
        (LinearRotary, {"factor": -2.0}, "rotary field 'factor' is -2.0: give a number above 0"),
        (DynamicRotary, {"original_max_position_embeddings": 0}, "'original_max_position_embeddings' is 0: give a"),
        (Llama3Rotary, {"high_freq_factor": 0.5}, "'high_freq_factor' is 0.5: give a number not below low_freq_factor"),
        (YarnRotary, {"attention_factor": 0.0}, "rotary field 'attention_factor' is 0.0: give a number above 0"),
        (YarnRotary, {"theta": 1.0}, "rotary field 'theta' is 1.0: give a number above 1"),
    ],
)
def test_numbers_that_are_refused(kind: type[Rotary], changes: dict[str, Any], message: str) -> None:
    good = next(rotary for rotary in ROTARY.values() if type(rotary) is kind)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(good, **changes)
