"""Fewer key-value heads: MHA to GQA or MQA (Ainslie et al. 2023, arXiv 2305.13245).

The network loses quality with it, and gets most of that back by some further training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyorder.checkpoints import weights
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama

POOLINGS = ("mean", "first", "random")


def shared_config(config: ModelConfig, kv_heads: int) -> ModelConfig:
    """Return the configuration with this number of key-value heads.

    Raises:
        UserError: the key-value heads of the network cannot be divided into as many equal groups.
    """
    before = config.num_key_value_heads
    if kv_heads < 1 or before % kv_heads:
        divisors = [str(number) for number in range(1, before + 1) if before % number == 0]
        raise UserError(
            f"kv_heads is {kv_heads}, but the network's {before} key-value heads are pooled in equal groups: give one "
            f"of {', '.join(divisors)}."
        )
    return config.replace(num_key_value_heads=kv_heads)


def share_heads(model: Llama, kv_heads: int, pooling: str = "mean", seed: int = 0) -> Llama:
    """Return a network whose query heads share `kv_heads` key-value heads; its other weights are those of `model`.

    Heads are pooled in contiguous groups, each becoming one: projections of keys and values, their biases, and
    whatever else has rows for each key-value head.

    Args:
        model: the network.
        kv_heads: how many are left, a divisor of those that there are.
        pooling: "mean" of each group, its "first" head, or "random", new heads as before training.
        seed: decides what is drawn for "random".

    Raises:
        UserError: `kv_heads` does not divide, `pooling` is unknown, or the weights are integers.
    """
    if pooling not in POOLINGS:
        raise UserError(f"pooling is {pooling!r}: give one of {weights.listed(POOLINGS)}.")
    config = shared_config(model.config, kv_heads)
    shared = weights.blank(config, model.backend)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        expected = shared.get_parameter(name).shape
        if parameter.shape != expected:
            pooled = _pool(name, parameter.detach(), config, pooling, generator)
            assert pooled.shape == expected, name
            parameter = nn.Parameter(pooled, requires_grad=parameter.requires_grad)
        weights.put(shared, name, parameter)
    if any(parameter.is_meta for parameter in shared.parameters()):
        raise UserError("the network's weights have been rounded to integers: share heads before that.")
    return shared.train(model.training)


def _pool(name: str, weight: Tensor, config: ModelConfig, pooling: str, generator: torch.Generator) -> Tensor:
    """Pool `[heads * head_dim, ...]` to `[fewer heads * head_dim, ...]`."""
    groups_GHD = weight.unflatten(0, (config.num_key_value_heads, -1, config.head_dim))
    first = groups_GHD[:, 0].flatten(0, 1)
    if pooling == "first":
        return first.clone()
    if pooling == "mean":
        wide_GHD = groups_GHD.to(torch.promote_types(weight.dtype, torch.float32))
        return wide_GHD.mean(1).flatten(0, 1).to(weight.dtype)
    if weight.dim() == 1:  # biases and norms, as in `Llama.reset_parameters`
        return torch.full_like(first, 0.0 if name.endswith("bias") else 1.0)
    drawn = torch.randn(first.shape, generator=generator) * config.initializer_range
    return drawn.to(first)
