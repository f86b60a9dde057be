"""Projections of one row, as the compiler gets them, and 8-bit weights."""

from __future__ import annotations

import copy

import pytest
import torch

from anyorder.model.config import ModelConfig
from anyorder.model.int8 import Int8Linear, to_int8
from anyorder.model.linear import Linear, one_row
from anyorder.model.llama import Llama


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (1, 1, 48), (1, 1, 1, 48)])
def test_one_row_is_the_projection(shape: tuple[int, ...], bias: bool) -> None:
    linear = Linear(48, 20, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(one_row(x, linear.weight, linear.bias), linear(x), rtol=0, atol=1e-12)


def test_one_row_of_bfloat16_is_summed_in_float32() -> None:
    """1024 ones in bfloat16 sum to 256 if the sum is kept in bfloat16, which cannot hold 257."""
    weight, x = torch.ones(3, 1024, dtype=torch.bfloat16), torch.ones(1, 1024, dtype=torch.bfloat16)
    assert one_row(x, weight, None).tolist() == [[1024.0] * 3]


def test_int8_rounds_each_weight_to_a_127th_of_the_largest_of_its_output() -> None:
    linear = Linear(64, 32, bias=True)
    int8 = Int8Linear(linear)
    assert int8.weight.dtype == torch.int8
    error_OI = (int8.weight * int8.scale.unsqueeze(1) - linear.weight).abs()
    half_step_O = linear.weight.abs().amax(1) / 127 / 2
    assert bool((error_OI <= half_step_O.unsqueeze(1) * 1.001).all())
    x = torch.randn(5, 64)
    torch.testing.assert_close(int8(x), x @ (int8.weight * int8.scale.unsqueeze(1)).T + linear.bias)


def test_a_weight_of_zeros_stays_zero() -> None:
    linear = Linear(4, 2, bias=False)
    torch.nn.init.zeros_(linear.weight)
    assert Int8Linear(linear)(torch.ones(1, 4)).tolist() == [[0.0, 0.0]]


def test_a_network_in_int8_is_smaller_and_nearly_the_same(tiny_config: ModelConfig) -> None:
    model = Llama(tiny_config).eval()
    ids = torch.randint(0, tiny_config.vocab_size, (2, 12))
    before = model(ids).logits
    int8 = to_int8(copy.deepcopy(model))
    assert not any(isinstance(module, Linear) for module in int8.modules())
    assert int8.dtype == torch.float32
    after = int8(ids).logits
    assert (after - before).abs().max() < 0.05 * before.abs().max()
    assert not torch.equal(after, before)
