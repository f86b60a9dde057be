"""Cache policies: which positions of a text are read in a pass; the keys of the others come from a cache.

The keys of a bidirectional network change when any token does, so a policy that keeps them over a step is approximate.
In a network that writes block by block, no block sees later ones, and the keys of complete blocks are exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from anyorder.decoding.diffusion.text import CanvasText

CacheName = Literal["none", "prefix", "dual"]


class CachePolicy(ABC):
    """Decides what is read again. It is shared by all texts of a batch, so it keeps nothing of any of them.

    Attributes:
        exact: whether the same is written as without a cache.
        caches: whether keys are kept at all.
    """

    exact: ClassVar[bool] = False
    caches: ClassVar[bool] = True

    @abstractmethod
    def reads(self, text: CanvasText) -> Sequence[int]:
        """Return the positions of a text that the next pass reads, in ascending order; a `range` where possible.

        A position can be predicted only in a pass that reads the position of its logits (`CanvasText.logits_at`), which
        is its own unless the network's logits are shifted.
        """

    def renews(self, text: CanvasText) -> bool:
        """Whether the next pass renews all keys of a text. Texts wait for each other, to do that in one pass."""
        return False


class NoCache(CachePolicy):
    """Read the whole canvas in each pass."""

    exact = True
    caches = False

    def reads(self, text: CanvasText) -> range:
        return range(text.visible_end)


@dataclass(frozen=True)
class BlockCache(CachePolicy):
    """Fast-dLLM's: keep the keys of what lies before the block, and renew them when a block begins.

    Attributes:
        dual: keep those of what lies behind the block as well.
        refresh: steps after which all keys are renewed within a block; None: only when it begins.
    """

    dual: bool
    refresh: int | None = None

    def reads(self, text: CanvasText) -> range:
        if self.renews(text):
            return range(text.visible_end)
        return range(text.logits_at(text.block.start), text.block.stop if self.dual else text.visible_end)

    def renews(self, text: CanvasText) -> bool:
        return text.step == 0 or (self.refresh is not None and text.step % self.refresh == 0)


class CompleteBlocks(CachePolicy):
    """Keep the keys of complete blocks, where no block sees later ones."""

    exact = True

    def reads(self, text: CanvasText) -> range:
        return range(min(text.logits_at(text.block.start), text.frozen_end), text.visible_end)


CACHES: dict[str, CachePolicy] = {
    "none": NoCache(),
    "prefix": BlockCache(dual=False),
    "dual": BlockCache(dual=True),
}
"""By the name in `DiffusionSampler.cache`, which takes a policy as well; networks with blocks have `CompleteBlocks`."""
