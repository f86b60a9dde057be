"""Logits of canvases: which rows go through the network in a pass, and which keys it finds in a cache.

Shapes: B rows of the batch, L positions of the canvas, R positions that are read, E hidden size, N queries, W
at most in one row of the batch, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.decoding.canvas import BLANK, PLAIN, CanvasLayout
from anyorder.decoding.diffusion.cache import CachePolicy
from anyorder.decoding.diffusion.guidance import guided
from anyorder.decoding.diffusion.text import CanvasText
from anyorder.decoding.loop import Queries, Reader
from anyorder.model.modes import Mode
from anyorder.utils.ragged import pad
from anyorder.visibility import bidirectional, not_after, open_rows

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class CanvasReader(Reader[CanvasText]):
    """Reads canvases, masked positions as the mask token.

    Args:
        model: the network.
        texts: the batch.
        mode: the mode that writes.
        policy: what a pass reads.
        block_length: tokens of a block, in a network where no block sees later ones; otherwise None.
        guidance: scale of classifier-free guidance; 0 for none.
        layout: of the canvases.
    """

    def __init__(
        self,
        model: Llama,
        texts: Sequence[CanvasText],
        mode: Mode,
        policy: CachePolicy,
        *,
        block_length: int | None = None,
        guidance: float = 0.0,
        layout: CanvasLayout = PLAIN,
    ) -> None:
        self.model = model
        self.texts = list(texts)
        self.mode = mode
        self.policy = policy
        self.block_length = block_length
        self.visibility = bidirectional() if block_length is None else not_after("block")
        if mode.causal_context:
            self.visibility = open_rows()
        self.guidance = guidance
        self.layout = layout
        self.mask_token_id = -1 if mode.mask_token_id is None else mode.mask_token_id
        self.number = {text: b for b, text in enumerate(texts)}
        tokens_BL, _ = pad([text.tokens for text in texts], model.device)
        self.given_BL = tokens_BL != BLANK
        self.ids_BL = tokens_BL.masked_fill(~self.given_BL, self.mask_token_id)
        copies = 2 if guidance else 1
        self.cache = model.new_cache(copies * len(texts), tokens_BL.shape[1]) if policy.caches else None

    def next_batch(self, writing: Sequence[CanvasText]) -> Sequence[CanvasText]:
        """Select the texts within a block first, so that then all renew their keys in one pass."""
        return [text for text in writing if not self.policy.renews(text)] or writing

    def logits(self, queries: Queries[CanvasText]) -> Tensor:
        """Read what the cache policy says, and return the logits of the queries, `[N, V]`."""
        self.passes += 1
        device = self.ids_BL.device
        # 1. Bring the ids up to date with what was written.
        written = [
            (self.number[text], position, text.tokens[position]) for text in queries for position in text.just_written
        ]  # fmt: skip
        if written:
            row_N, position_N, token_N = torch.tensor(written, device=device).unbind(1)
            self.ids_BL[row_N, position_N] = token_N
        # 2. Select positions. A cache is of the whole batch; without one, texts that rest are left out.
        texts = self.texts if self.cache is not None else list(queries)
        reads: list[Sequence[int]] = [self.policy.reads(text) if text in queries else range(0) for text in texts]
        at_BR, valid_BR = pad(reads, device)
        # 3. Find the network row of each query. Shifted positions 0 and 1 share one, whose logits are computed once:
        # two computations may differ in the last bit, by which a tie between the positions would depend on the batch.
        columns = [
            [read.index(text.logits_at(position)) for position in queries.get(text, ())]
            for text, read in zip(texts, reads, strict=True)
        ]
        once = [list(dict.fromkeys(of_text)) for of_text in columns]
        column_BW, query_BW = pad(once, device)
        # 4. Run the network; for guidance, also on the same rows without what is given.
        numbers = [self.number[text] for text in texts]
        ids_BR = self.ids_BL[numbers].gather(1, at_BR)
        if self.guidance:
            free_BR = ids_BR.masked_fill(self.given_BL[numbers].gather(1, at_BR), self.mask_token_id)
            ids_BR = torch.cat((ids_BR, free_BR))
            at_BR, valid_BR, column_BW = (half.repeat(2, 1) for half in (at_BR, valid_BR, column_BW))
            numbers = [*numbers, *numbers]
        hidden_BWE = self._hidden(ids_BR, at_BR, valid_BR, numbers, column_BW)
        logits_MV = self.model.logits(hidden_BWE[: len(texts)][query_BW])
        if self.guidance:
            logits_MV = guided(logits_MV, self.model.logits(hidden_BWE[len(texts) :][query_BW]), self.guidance)
        if once == columns:
            return logits_MV
        pairs = [(b, column) for b, of_text in enumerate(once) for column in of_text]
        number = {pair: index for index, pair in enumerate(pairs)}
        return logits_MV[[number[b, column] for b, of_text in enumerate(columns) for column in of_text]]

    def _hidden(
        self, ids_BR: Tensor, at_BR: Tensor, valid_BR: Tensor, numbers: Sequence[int], column_BW: Tensor
    ) -> Tensor:
        """Run the network; return these columns after the last layer, which computes no others."""
        labels = {"position": at_BR}
        if self.block_length is not None:
            labels["block"] = at_BR // self.block_length
        if self.mode.causal_context:
            open_from_B = torch.tensor([self.texts[number].open_from for number in numbers], device=at_BR.device)
            labels["open"] = (at_BR >= open_from_B.unsqueeze(1)).long()
        visibility, labels, others = self.layout.narrow(numbers, self.visibility, labels)
        views = self.model.prepare(
            visibility, labels, valid=None if bool(valid_BR.all()) else valid_BR, cache=self.cache,
            slots=None if self.cache is None else at_BR, queries=column_BW, **others,
        )  # fmt: skip
        return self.model.hidden(ids_BR, views, self.cache)
