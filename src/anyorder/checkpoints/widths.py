"""A wider network that computes the same (Net2Net, Chen et al. 2016, arXiv 1511.05641), to begin a training from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyorder.checkpoints import weights
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama

MOST_TIMES = 64
"""Beyond this a mistake is more likely than a wish."""


def wider_config(config: ModelConfig, times: int) -> ModelConfig:
    """Return the configuration with `times` the width, the heads and the inner width.

    Raises:
        UserError: `times` is below 2 or too large, or the network has experts, vision or a mode beside left to right.
    """
    if not 2 <= times <= MOST_TIMES:
        raise UserError(f"widen is {times}: give a whole number from 2 to {MOST_TIMES}.")
    for field, held in (("experts", config.experts), ("vision", config.vision)):
        if held is not None:
            raise UserError(f"widen is {times}, but the network has {field}: give one without.")
    others = [mode.name for mode in config.modes if mode.name != "left-to-right"]
    if others:
        raise UserError(f"widen is {times}, but the network writes {', '.join(others)}: widen it before that training.")
    return config.replace(
        hidden_size=config.hidden_size * times,
        intermediate_size=config.intermediate_size * times,
        num_attention_heads=config.num_attention_heads * times,
        num_key_value_heads=config.num_key_value_heads * times,
    )


def to_wider(model: Llama, times: int, seed: int = 0) -> Llama:
    """Return a network of `times` the width whose logits are those of `model`, up to rounding.

    Every row consists of `times` copies of the row of `model`, and so do heads and inner rows. Each matrix reads all
    copies: its parts sum to the matrix of `model`, but differ by noise as large as its weights, so that training moves
    the copies apart.

    Args:
        model: a dense network that writes from left to right.
        times: copies, 2 or more.
        seed: decides the noise.

    Raises:
        UserError: see `wider_config`.
    """
    config = wider_config(model.config, times)
    wide = weights.blank(config, model.backend)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith("lm_head") and config.tie_word_embeddings:
            weights.put(wide, name, wide.get_parameter("model.embed_tokens.weight"))
            continue
        weight = parameter.detach()
        if name == "model.embed_tokens.weight":
            widened = weight.repeat(1, times)
        elif name.startswith("lm_head"):
            widened = _read_all(weight, times, generator)
        elif name == "model.norm.weight" and config.tie_word_embeddings:
            widened = weight.repeat(times) / times  # the head, which is the embedding, adds up the copies
        elif weight.dim() == 1:
            is_of_head = weight.shape == wide.get_parameter(name).shape
            widened = weight.clone() if is_of_head else weight.repeat(times)
        else:
            widened = _read_all(weight.repeat(times, 1), times, generator)
        weights.put(wide, name, nn.Parameter(widened, requires_grad=parameter.requires_grad))
    return wide.train(model.training)


def _read_all(weight_OI: Tensor, times: int, generator: torch.Generator) -> Tensor:
    """`[out, in]` to `[out, times * in]`: parts that sum to the weight."""
    weight = weight_OI.to(torch.promote_types(weight_OI.dtype, torch.float32))
    noise_TOI = torch.randn((times, *weight.shape), generator=generator).to(weight) * weight.std()
    parts_TOI = (weight + noise_TOI - noise_TOI.mean(0)) / times
    return torch.cat(tuple(parts_TOI), 1).to(weight_OI.dtype)
