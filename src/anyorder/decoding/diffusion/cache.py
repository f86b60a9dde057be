"""Cache policies: which positions of a row are read in a pass; the keys of the others come from a cache.

The keys of a bidirectional network change when any token does, so a policy that keeps them over a step is approximate.
In a network that writes block by block, no block sees later ones, and the keys of complete blocks are exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from anyorder.decoding.diffusion.row import CanvasRow

CacheName = Literal["none", "prefix", "dual"]


class CachePolicy(ABC):
    """Decides what is read again. It is shared by all rows, so what it needs to know of one it finds in the row.

    Attributes:
        exact: whether the same is written as without a cache.
        caches: whether keys are kept at all.
    """

    exact: ClassVar[bool] = False
    caches: ClassVar[bool] = True

    @abstractmethod
    def reads(self, row: CanvasRow) -> Sequence[int]:
        """Return the positions of a row that the next pass reads, in ascending order; a `range` where possible.

        A position can be predicted only in a pass that reads the position of its logits (`CanvasRow.logits_at`), which
        is its own unless the network's logits are shifted.
        """

    def renews(self, row: CanvasRow) -> bool:
        """Whether the next pass renews all keys of a row. Rows wait for each other, to do that in one pass."""
        return False


class NoCache(CachePolicy):
    """Read the whole canvas in each pass."""

    exact = True
    caches = False

    def reads(self, row: CanvasRow) -> range:
        return range(row.sight)


@dataclass(frozen=True)
class BlockCache(CachePolicy):
    """Fast-dLLM's: keep the keys of what lies before the block, and renew them when a block begins.

    Attributes:
        dual: keep those of what lies behind the block as well.
        refresh: steps after which all keys are renewed within a block; None: only when it begins.
    """

    dual: bool
    refresh: int | None = None

    def reads(self, row: CanvasRow) -> range:
        if self.renews(row):
            return range(row.sight)
        return range(row.logits_at(row.block.start), row.block.stop if self.dual else row.sight)

    def renews(self, row: CanvasRow) -> bool:
        return row.step == 0 or (self.refresh is not None and row.step % self.refresh == 0)


class CompleteBlocks(CachePolicy):
    """Keep the keys of complete blocks, where no block sees later ones."""

    exact = True

    def reads(self, row: CanvasRow) -> range:
        return range(min(row.logits_at(row.block.start), row.complete), row.sight)


CACHES: dict[str, CachePolicy] = {
    "none": NoCache(),
    "prefix": BlockCache(dual=False),
    "dual": BlockCache(dual=True),
}
"""By the name in `DiffusionSampler.cache`, which takes a policy as well; networks with blocks have `CompleteBlocks`."""
