"""What an approximate cache changes while a sampler writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyorder.api.dispatch import Order, prompts_for, resolve
from anyorder.api.text import Prompt
from anyorder.decoding.diffusion.decoder import DiffusionSampler, diffusion_steps
from anyorder.inspection.cache_drift import Drift

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama


def cache_drift(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, prompt: Prompt, order: Order | None,
    max_new_tokens: int = 64, seed: int = 0,
) -> Drift | None:  # fmt: skip
    """How far the logits of a sampler with an approximate cache are from those of passes over everything.

    The prompts are written once more, and each pass with the cache is compared with one without, which counts nowhere.

    Args:
        model, tokenizer, prompt, order, max_new_tokens, seed: as in `anyorder.generate`.

    Returns:
        The drift of all passes; None where the order has no approximate cache.

    Raises:
        UserError: as in `anyorder.generate`.
    """
    way, order = resolve(order, model.config)
    if not isinstance(order, DiffusionSampler):
        return None  # orders by name have no cache, or the exact one of blocks
    canvases = prompts_for(order, prompt, tokenizer, model.config, max_new_tokens).rows
    drifts: list[Drift] = []
    rows = range(len(canvases))
    for _ in diffusion_steps(model, canvases, order, way=way, rows=rows, seed=seed, on_drift=drifts.append):
        pass
    return Drift.join(drifts) if drifts else None
