"""What an approximate cache changes while a sampler writes.

Shapes: N queries, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from anyorder.api.prompts import Prompt, prompts_for
from anyorder.decoding.diffusion.cache import NoCache
from anyorder.decoding.diffusion.decoder import assemble
from anyorder.decoding.diffusion.reader import CanvasReader
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.diffusion.text import CanvasText
from anyorder.decoding.loop import Queries, Reader, decode
from anyorder.decoding.trace import Step
from anyorder.modes import Order, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama
    from anyorder.model.modes import Mode


class Drift(NamedTuple):
    """Of one pass, over the positions that could be written in it.

    Attributes:
        positions: how many.
        divergence: of the cached distribution from the exact one (Kullback-Leibler), the mean in nats.
        largest: difference of two logits, each distribution's own brought to log-probabilities.
        changed: share of positions whose most probable token is another one.
    """

    positions: int
    divergence: float
    largest: float
    changed: float

    @classmethod
    def between(cls, cached_NV: Tensor, exact_NV: Tensor) -> Drift:
        """Measure the drift of some logits from others."""
        cached_NV, exact_NV = (logits_NV.double().log_softmax(-1) for logits_NV in (cached_NV, exact_NV))
        divergence_N = (exact_NV.exp() * (exact_NV - cached_NV)).sum(-1)
        changed_N = cached_NV.argmax(-1) != exact_NV.argmax(-1)
        largest = float((cached_NV - exact_NV).abs().max())
        return cls(len(cached_NV), float(divergence_N.mean()), largest, float(changed_N.double().mean()))

    @classmethod
    def join(cls, drifts: Sequence[Drift]) -> Drift:
        """Join the drift of several passes, at least one, over all their positions."""
        positions = sum(drift.positions for drift in drifts)
        divergence, changed = (
            sum(drift.positions * getattr(drift, name) for drift in drifts) / positions
            for name in ("divergence", "changed")
        )
        return cls(positions, divergence, max(drift.largest for drift in drifts), changed)


class WatchedReader(Reader[CanvasText]):
    """A reader with a cache, and one without beside it that reads everything again, for comparison.

    Args:
        cached: the reader whose logits are used.

    Attributes:
        drifts: of each pass that read less than everything.
    """

    def __init__(self, cached: CanvasReader) -> None:
        self.cached = cached
        self.exact = CanvasReader(
            cached.model, cached.texts, cached.mode, NoCache(), block_length=cached.block_length,
            guidance=cached.guidance, layout=cached.layout,
        )  # fmt: skip
        self.exact.ids_BL = cached.ids_BL  # which the cached reader keeps up to date
        self.drifts: list[Drift] = []

    def next_batch(self, writing: Sequence[CanvasText]) -> Sequence[CanvasText]:
        """Select as the cached reader does."""
        return self.cached.next_batch(writing)

    def logits(self, queries: Queries[CanvasText]) -> Tensor:
        """Return the logits `[N, V]` of the cached reader."""
        cached_NV = self.cached.logits(queries)
        self.passes = self.cached.passes  # those of the comparison count nowhere
        policy = self.cached.policy
        if not policy.exact and any(len(policy.reads(text)) < text.visible_end for text in queries):
            self.drifts.append(Drift.between(cached_NV, self.exact.logits(queries)))
        return cached_NV


def watched_steps(
    model: Llama, canvases: Sequence[Sequence[int]], sampler: DiffusionSampler, *, mode: Mode,
    sample_ids: Sequence[int], seed: int = 0,
) -> tuple[Iterator[Step], list[Drift]]:  # fmt: skip
    """Write as `diffusion_steps` does; return its steps, and a list that they fill with the drift of their passes."""
    texts, cached, choose = assemble(model, canvases, sampler, mode=mode, sample_ids=sample_ids, seed=seed)
    reader = WatchedReader(cached)
    return decode(texts, reader, choose, stop=None), reader.drifts


def cache_drift(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, prompt: Prompt, order: Order | None,
    max_new_tokens: int = 64, seed: int = 0,
) -> Drift | None:  # fmt: skip
    """Measure how far the logits of a sampler with an approximate cache are from those of passes over everything.

    The prompts are written once more, and each pass with the cache is compared with one without, which counts nowhere.

    Args:
        model, tokenizer, prompt, order, max_new_tokens, seed: as in `anyorder.generate`.

    Returns:
        The drift of all passes; None where the order has no approximate cache.

    Raises:
        UserError: as in `anyorder.generate`.
    """
    mode, order = resolve(order, model.config)
    if not isinstance(order, DiffusionSampler):
        return None  # orders by name have no cache, or the exact one of blocks
    canvases = prompts_for(order, prompt, tokenizer, model.config, max_new_tokens).rows
    steps, drifts = watched_steps(model, canvases, order, mode=mode, sample_ids=range(len(canvases)), seed=seed)
    for _ in steps:
        pass
    return Drift.join(drifts) if drifts else None
