"""MHA, GQA and MQA versions of one network: what sharing key-value heads saves."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anyorder.checkpoints import weights
from anyorder.checkpoints.heads import share_heads
from anyorder.model.cache import Cache
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.visibility import causal

CONTEXT = 1024
"""Tokens that have been read before the one whose time is taken, if the network was trained on as many."""

SECONDS_EACH = 0.5
ROUNDS = range(3, 201)
"""How often each version writes a token: until it has had `SECONDS_EACH`, within these numbers."""


@dataclass(frozen=True)
class HeadSharing:
    """One version of a network.

    Attributes:
        kv_heads: its key-value heads.
        layout: "MHA", "GQA" or "MQA".
        parameters: their number, tied ones once.
        cache_bytes: of keys and values, per token of context.
        seconds: median time to write one token, None if it was not measured.
    """

    kv_heads: int
    layout: str
    parameters: int
    cache_bytes: int
    seconds: float | None = None


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in weights.blank(config).parameters())


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Count the bytes of keys and values per token of context."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def versions(config: ModelConfig) -> list[ModelConfig]:
    """Return the network with each possible number of key-value heads, from MHA to MQA."""
    heads = config.num_attention_heads
    numbers = [number for number in range(heads, 0, -1) if heads % number == 0]
    return [config.replace(num_key_value_heads=number) for number in numbers]


def compare_head_sharing(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, *, backend: str = "auto", timed: bool = True
) -> list[HeadSharing]:
    """Compare all versions of a network, from MHA to MQA.

    Args:
        config: one of them.
        dtype: of weights and cache.
        device: where time is taken.
        backend: the attention backend.
        timed: False leaves out the time, and then no weights are needed.
    """
    described = versions(config)
    seconds = _seconds_per_token(config, dtype, device, backend) if timed else [None] * len(described)
    return [
        HeadSharing(
            kv_heads=version.num_key_value_heads,
            layout=version.head_layout,
            parameters=parameter_count(version),
            cache_bytes=cache_bytes(version, dtype),
            seconds=taken,
        )
        for version, taken in zip(described, seconds, strict=True)
    ]


def context_length(config: ModelConfig) -> int:
    """Tokens that have been read before the one whose time is taken."""
    return min(CONTEXT, config.max_position_embeddings - 1)


def bytes_to_time(config: ModelConfig, dtype: torch.dtype) -> int:
    """Memory that taking the time needs: all versions share all weights but those of keys and values."""
    most, *fewer = versions(config)
    of_one_head = 2 * config.num_hidden_layers * config.hidden_size * config.head_dim
    numbers = parameter_count(most) + of_one_head * sum(version.num_key_value_heads for version in fewer)
    caches = (context_length(config) + 1) * sum(cache_bytes(version, dtype) for version in (most, *fewer))
    return numbers * dtype.itemsize + caches


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device; of a CPU's where it is not known, 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):
        return 4 * 2**30


@torch.inference_mode()
def _seconds_per_token(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, backend: str
) -> list[float]:  # fmt: skip
    """Median seconds in which each version writes one token, batch 1, with random weights.

    The versions take turns, so that what else the machine does meets all of them.
    """
    most, *fewer = versions(config)
    models = [_random(most, dtype, device, backend)]
    models += [share_heads(models[0], version.num_key_value_heads, "first") for version in fewer]
    context = context_length(config)
    position_1R = torch.arange(context + 1, device=device).unsqueeze(0)
    caches = [model.new_cache(1, context + 1) for model in models]
    for cache in caches:
        cache.put({"position": position_1R[:, :context]})  # what the keys are changes no time
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(1 + ROUNDS[-1]):
        for times, model, cache in zip(seconds, models, caches, strict=True):
            taken = _time_token(model, cache, position_1R[:, context:])
            times += [taken] if turn > 0 else []  # the first one warms up
        if turn >= ROUNDS[0] and sum(map(sum, seconds)) > SECONDS_EACH * len(models):
            break
    return [statistics.median(times) for times in seconds]


def _time_token(model: Llama, cache: Cache, position_11: Tensor) -> float:
    """Measure the seconds to write one token, always into the same slot of the cache."""
    token_11 = torch.zeros_like(position_11)
    started = time.perf_counter()
    views = model.prepare(causal(), {"position": position_11}, cache=cache, slots=position_11)
    model.logits(model.hidden(token_11, views, cache)).argmax().item()
    return time.perf_counter() - started


def _random(config: ModelConfig, dtype: torch.dtype, device: torch.device, backend: str) -> Llama:
    """Make a network whose weights are one block of random numbers, repeated: drawing billions would take minutes."""
    model = weights.blank(config, backend)
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    for name, parameter in list(model.named_parameters()):
        weight = torch.ones(parameter.shape, dtype=dtype, device=device)
        for part in weight.flatten().split(len(block)) if parameter.dim() > 1 else ():
            part.copy_(block[: len(part)]).mul_(config.initializer_range)
        weights.put(model, name, nn.Parameter(weight, requires_grad=False))
    model.tie_weights()
    return model.eval()
