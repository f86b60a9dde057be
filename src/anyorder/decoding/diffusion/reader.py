"""Reading canvases: which rows of them go through the network in a pass, and which keys it finds in a cache.

The keys of a bidirectional network change when any token does, so a cache that keeps them over a step is approximate
there. In a network that writes block by block, nothing sees later blocks, and the keys of complete blocks are exact.

Shapes: B rows of the batch, L positions of the canvas, R rows that are read, E hidden size, N wanted positions, M of
them that are read from different rows, W at most in one row of the batch, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from anyorder.decoding.canvas import BLANK
from anyorder.decoding.diffusion.guidance import guided
from anyorder.decoding.diffusion.schedule import Block
from anyorder.decoding.fusion.canvases import FusedCanvases, apart
from anyorder.model.self_attention import SelfAttention
from anyorder.visibility import bidirectional, not_after
from anyorder.ways import Way

if TYPE_CHECKING:
    from anyorder.decoding.diffusion.decoder import DiffusionSampler
    from anyorder.decoding.diffusion.row import CanvasRow, Choice
    from anyorder.model.llama import Llama

CacheName = Literal["none", "prefix", "dual"]


class Span(NamedTuple):
    """Positions of a row that are read in a pass, from `start` to `stop` (excluded)."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """What a pass reads of a row, by the name of its cache.

    "none" reads the whole canvas in each pass. "prefix" keeps the keys of all that stands before the block, "dual"
    those of what stands behind it as well; both are renewed by a pass over the whole canvas when a block begins.
    In a network with blocks, "prefix" and "dual" are one and keep the keys of complete blocks, which never change.

    Attributes:
        name: of the cache.
        way: the network's way of writing; where its logits are shifted, those of a block's first position are those of
            the row before, which is read too.
        refresh: passes after which keys are renewed within a block; None renews them when a block begins.
    """

    name: CacheName
    way: Way
    refresh: int | None = None

    @property
    def exact(self) -> bool:
        """Whether what is written is what would be written without the cache."""
        return self.name == "none" or self.causal

    @property
    def causal(self) -> bool:
        """Whether no block sees later ones."""
        return self.way.name == "blocks"

    def renews(self, step: int) -> bool:
        """Whether step number `step` of a block reads the whole canvas though there is a cache."""
        return not self.exact and (step == 0 or (self.refresh is not None and step % self.refresh == 0))

    def span(self, block: Block, step: int, sight: int, known: int) -> Span:
        """What a row reads.

        Args:
            block: the block that is written.
            step: of the block, from 0.
            sight: end of what can be seen at present.
            known: positions from the first whose keys are in an exact cache.
        """
        first = self.way.row(block.start)
        if self.name == "none" or self.renews(step):
            return Span(0, sight)
        if self.causal:
            return Span(min(first, known), sight)
        return Span(first, sight if self.name == "prefix" else block.stop)


class CanvasReader:
    """The network's scores for positions of canvases, whose masked positions it reads as the mask token.

    Args:
        model: the network.
        way: of writing.
        rows: the canvases.
        sampler: whose block_length, cfg_scale and cache count here.
        fused: where phrasings of questions stand in them; None where there are none.
    """

    def __init__(
        self, model: Llama, way: Way, rows: Sequence[CanvasRow], sampler: DiffusionSampler,
        fused: FusedCanvases | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.fused = fused
        self.way = way
        self.mask_token_id = -1 if way.mask_token_id is None else way.mask_token_id
        self.block_length = sampler.block_length if way.name == "blocks" else None
        self.visibility = bidirectional() if self.block_length is None else not_after("block")
        self.guidance = sampler.cfg_scale
        length = max(len(row.tokens) for row in rows)
        padded = torch.tensor([[*row.tokens, *[0] * (length - len(row.tokens))] for row in rows], device=model.device)
        self.given_BL = padded != BLANK
        self.ids_BL = padded.masked_fill(~self.given_BL, self.mask_token_id)
        copies = 2 if self.guidance else 1
        self.cache = None if sampler.cache == "none" else model.new_cache(copies * len(rows), length)

    def write(self, row: int, choices: Sequence[Choice]) -> None:
        """Takes note of what was written in a row."""
        self.ids_BL[row, [choice.position for choice in choices]] = torch.tensor(
            [choice.token_id for choice in choices], dtype=torch.int64, device=self.ids_BL.device
        )

    def logits(self, spans: Mapping[int, Span], wanted: Mapping[int, Sequence[int]]) -> Tensor:
        """Logits `[N, V]` of the wanted positions, row after row.

        Args:
            spans: by the index of a row, what is read of it. The others rest.
            wanted: of the same rows, positions within their span.
        """
        # A cache is of the whole batch; without one, rows that rest are left out.
        rows = list(spans) if self.cache is None else list(range(len(self.ids_BL)))
        read = [spans.get(b, Span(0, 0)) for b in rows]
        # Where logits are shifted, positions 0 and 1 share a row, whose logits are made once: so they are the same.
        looks = [[self.way.row(at) for at in wanted.get(b, ())] for b in rows]
        once = [sorted(set(row)) for row in looks]
        scores_MV = self._scores(rows, read, once)
        if not self.way.shifted:
            return scores_MV
        places: list[int] = []
        before = 0
        for row, own in zip(looks, once, strict=True):
            place = {at: before + number for number, at in enumerate(own)}
            places += [place[at] for at in row]
            before += len(own)
        return scores_MV[places]

    def _scores(self, rows: Sequence[int], spans: Sequence[Span], looks: Sequence[Sequence[int]]) -> Tensor:
        """Logits of network rows, by their positions in each of these rows of the batch."""
        device = self.ids_BL.device
        start_B1, stop_B1 = (torch.tensor([span[end] for span in spans], device=device).unsqueeze(1) for end in (0, 1))
        at_BR = start_B1 + torch.arange(max(span.stop - span.start for span in spans), device=device)
        valid_BR = at_BR < stop_B1
        at_BR = at_BR.masked_fill(~valid_BR, 0)
        most = max(map(len, looks))
        look_BW = torch.tensor([[*row, *[-1] * (most - len(row))] for row in looks], device=device)
        wanted_BW = look_BW >= 0
        column_BW = (look_BW - start_B1).masked_fill(~wanted_BW, 0)
        ids_BR = self.ids_BL[rows].gather(1, at_BR)
        if self.guidance:
            free_BR = ids_BR.masked_fill(self.given_BL[rows].gather(1, at_BR), self.mask_token_id)
            ids_BR = torch.cat((ids_BR, free_BR))
            at_BR, valid_BR, column_BW = (half.repeat(2, 1) for half in (at_BR, valid_BR, column_BW))
        hidden_BWE = self._read(ids_BR, at_BR, valid_BR, [*rows, *rows] if self.guidance else rows, column_BW)
        scores_MV = self.model.logits(hidden_BWE[: len(rows)][wanted_BW])
        if not self.guidance:
            return scores_MV
        free_MV = self.model.logits(hidden_BWE[len(rows) :][wanted_BW])
        return guided(scores_MV, free_MV, self.guidance)

    def _read(
        self, ids_BR: Tensor, at_BR: Tensor, valid_BR: Tensor, rows: Sequence[int], column_BW: Tensor
    ) -> Tensor:  # fmt: skip
        """The rows in these columns after the last layer, of which no others are asked for."""
        labels, visibility = {"position": at_BR}, self.visibility
        if self.block_length is not None:
            labels["block"] = at_BR // self.block_length
        others: dict[str, Any] = {}
        if self.fused is not None:
            sight = self.fused.sight(rows, at_BR)
            labels, visibility = labels | sight.labels, visibility & apart()
            others = {"bias": sight.bias, "tempered": sight.tempered, "rotary_positions": sight.rotary_positions}
        # An attention of one's own may not know how to leave rows out.
        narrows = type(self.model.model.layers[-1].self_attn) is SelfAttention
        views = self.model.prepare(
            visibility, labels, valid=None if bool(valid_BR.all()) else valid_BR, cache=self.cache,
            slots=None if self.cache is None else at_BR, wanted=column_BW if narrows else None, **others,
        )  # fmt: skip
        hidden_BRE = self.model.hidden(ids_BR, views, self.cache)
        if narrows:
            return hidden_BRE
        return hidden_BRE[torch.arange(len(ids_BR), device=ids_BR.device).unsqueeze(1), column_BW]
