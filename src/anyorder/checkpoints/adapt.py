"""A network that is to be trained in further modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from anyorder.checkpoints import weights
from anyorder.model.llama import Llama
from anyorder.model.modes import Mode


def adapt(model: Llama, modes: Sequence[Mode], default_mode: str = "", seed: int = 0) -> Llama:
    """Return the same network with these modes: what it has is shared, and what it lacks is drawn.

    Only query rows can be lacking, which "any-order" needs; the backbone stays as it is, so a causal network still
    writes what it wrote.

    Args:
        model: the network; its weights are shared, not copied.
        modes: all modes that the new one shall have, with those that it had if they are to stay.
        default_mode: name of the one that is used unless another is requested; the first unless given.
        seed: decides what is drawn.

    Raises:
        UserError: the modes exclude each other, or a mask token is outside the vocabulary.
    """
    config = model.config.replace(modes=tuple(modes), default_mode=default_mode)
    adapted = weights.blank(config, model.backend)
    had = dict(model.named_parameters(remove_duplicate=False))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(adapted.named_parameters(remove_duplicate=False)):
        if name not in had:
            drawn = torch.randn(parameter.shape, generator=generator) * config.initializer_range
            had[name] = nn.Parameter(drawn.to(model.device, model.dtype))
        weights.put(adapted, name, had[name])
    return adapted.train(model.training)
