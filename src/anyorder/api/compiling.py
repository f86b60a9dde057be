"""Compile the layers of a network beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anyorder.api.fuse import fuse
from anyorder.api.generate import generate
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.errors import UserError
from anyorder.model.compiled import with_packages
from anyorder.model.packages import packages_kept
from anyorder.modes import Order

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

ORDERS: dict[str, tuple[Order, ...]] = {
    "any-order": ("random", "groups:2"),
    "diffusion": ("diffusion", DiffusionSampler(steps=2, cache="dual")),
}
"""Of modes whose passes have several forms."""

TEXTS = (1, 2)
"""One text and several have code of their own."""


def compile_layers(model: Llama, report: Callable[[str], None] = lambda line: None) -> int:
    """Make the packages of a network's layers that are not on disk yet: write a few tokens in each mode, and fuse.

    Args:
        model: the network, on a CPU.
        report: callback, called with each mode before it is written in.

    Returns:
        The number of packages that were made.

    Raises:
        UserError: there is no compiler, no package can serve this network, or some could not be made.
    """
    before = packages_kept()
    prepared = with_packages(model, making=True)
    assert prepared.compiled_layers is not None, "which making ensures"
    prepared.config = model.config.replace(eos_token_ids=())  # of this copy alone: no text ends before all was needed
    masks = {mode.mask_token_id for mode in model.config.modes}
    prompt = [token_id for token_id in range(model.config.vocab_size) if token_id not in masks][-4:]
    for mode in model.config.modes:
        for order in ORDERS.get(mode.name, (mode.name,)):
            for texts in TEXTS:
                name = order if isinstance(order, str) else f"{mode.name} with a cache"
                report(f"{name}, {texts} text{'s' * (texts > 1)} at a time")
                generate(prepared, None, [prompt[text:] for text in range(texts)], order=order, max_new_tokens=4)
        if mode.kind.causal:
            report("fused phrasings")
            fuse(prepared, None, [prompt, prompt[:2]], max_new_tokens=3)
    if missing := prepared.compiled_layers.missing:
        raise UserError(f"{missing} packages could not be made: see the warnings, and try again.")
    return len(packages_kept() - before)
