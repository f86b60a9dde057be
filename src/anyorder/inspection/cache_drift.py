"""How far the logits of an approximate cache are from those of passes over everything.

Shapes: N wanted positions, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from anyorder.decoding.diffusion.reader import CanvasReader, Span

if TYPE_CHECKING:
    from anyorder.decoding.diffusion.row import Choice


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
        """The drift of some logits from others."""
        cached_NV, exact_NV = (logits_NV.double().log_softmax(-1) for logits_NV in (cached_NV, exact_NV))
        divergence_N = (exact_NV.exp() * (exact_NV - cached_NV)).sum(-1)
        changed_N = cached_NV.argmax(-1) != exact_NV.argmax(-1)
        largest = float((cached_NV - exact_NV).abs().max())
        return cls(len(cached_NV), float(divergence_N.mean()), largest, float(changed_N.double().mean()))

    @classmethod
    def join(cls, drifts: Sequence[Drift]) -> Drift:
        """The drift of several passes, at least one, over all their positions."""
        positions = sum(drift.positions for drift in drifts)
        divergence, changed = (
            sum(drift.positions * getattr(drift, name) for drift in drifts) / positions
            for name in ("divergence", "changed")
        )
        return cls(positions, divergence, max(drift.largest for drift in drifts), changed)


class WatchedReader:
    """A reader with a cache, and one without beside it that reads everything again, for comparison.

    Args:
        cached: the reader whose logits are used.
        exact: of the same canvases, without a cache.
        sight: where what can be seen of a row ends at present, by its index.
        on_drift: is told the drift of each pass that reads less than everything.
    """

    def __init__(
        self, cached: CanvasReader, exact: CanvasReader, sight: Callable[[int], int], on_drift: Callable[[Drift], None]
    ) -> None:
        self.cached = cached
        self.exact = exact
        self.exact.ids_BL = cached.ids_BL
        self.sight = sight
        self.on_drift = on_drift

    def write(self, row: int, choices: Sequence[Choice]) -> None:
        """Takes note of what was written in a row."""
        self.cached.write(row, choices)

    def logits(self, spans: Mapping[int, Span], wanted: Mapping[int, Sequence[int]]) -> Tensor:
        """Logits `[N, V]` of the reader with a cache."""
        cached_NV = self.cached.logits(spans, wanted)
        whole = {b: Span(0, self.sight(b)) for b in spans}
        if whole != spans:
            self.on_drift(Drift.between(cached_NV, self.exact.logits(whole, wanted)))
        return cached_NV
