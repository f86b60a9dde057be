"""Logits of the next token, with a cache or without, compiled or not.

Shapes: B texts, R tokens fed in a pass, D hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.attention import NO_CORRECTIONS
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Queries, Reader
from anyorder.model.compiled import CannotCompile, Compiled
from anyorder.model.step import step_extent
from anyorder.utils.ragged import distinct, pad_right
from anyorder.visibility import causal

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama

logger = logging.getLogger(__name__)


class BeamReader(Reader[CausalText]):
    """A reader whose texts can exchange what was read of them."""

    @abstractmethod
    def reorder(self, parents: Sequence[int]) -> None:
        """Let each text of the batch go on from the keys of the text with this index, which has the same prompt."""


class CausalReader(BeamReader):
    """Reads each token once: the cache holds all of each text but its last token, for as long as it is written.

    Args:
        model: the network.
        texts: the batch.
        use_cache: False computes all rows again in each pass (slow reference path).
        one_token: the compiled one-token step; None for an uncompiled one.

    Attributes:
        cache: what was read; None before the first pass, and where texts are too long for one.
        capacity: tokens of the longest text.
        labels, corrections: of each new token, labels `[B, 1]` besides the position, and what changes its scores.
    """

    def __init__(
        self, model: Llama, texts: Sequence[CausalText], *, use_cache: bool = True, one_token: Compiled | None = None
    ) -> None:
        self.model = model
        self.texts = texts
        self.use_cache = use_cache
        self.one_token = one_token
        self.cache: Cache | None = None
        self.capacity = max(text.limit for text in texts)
        self.labels: dict[str, Tensor] = {}
        self.corrections = NO_CORRECTIONS

    @property
    def cacheable(self) -> int:
        """Tokens of a text up to which it can be read from a cache."""
        limit = self.model.config.cacheable
        return self.capacity if limit is None else limit

    def logits(self, queries: Queries[CausalText]) -> Tensor:
        """Return the logits of the next token of each text, `[N, V]`."""
        self.passes += 1
        if max(len(text.tokens) for text in self.texts) > self.cacheable:
            self.use_cache, self.cache = False, None
        if not self.use_cache:
            return self._reread(list(queries))
        if self.cache is None:
            return self._prefill()
        fresh = [text.tokens[-1:] if text in queries else [] for text in self.texts]
        ids_BR, position_BR, valid_BR = pad_right(
            fresh, [self._position(text) for text in self.texts], self.model.device
        )
        logits_BV = self._one_token(ids_BR, position_BR, valid_BR, keys=max(len(text.tokens) for text in queries))
        if len(queries) == len(self.texts):
            return logits_BV
        return logits_BV[[b for b, text in enumerate(self.texts) if text in queries]]

    def reorder(self, parents: Sequence[int]) -> None:
        """Reorder what the cache holds behind the prompts."""
        if self.cache is not None:
            start = min(text.first for text in self.texts)
            self.cache.reorder(torch.tensor(parents, device=self.model.device), start)

    def _position(self, text: CausalText) -> int:
        """Return the position of the last token."""
        return len(text.tokens) - 1

    def _one_token(self, ids_B1: Tensor, position_B1: Tensor, valid_B1: Tensor, keys: int) -> Tensor:
        assert self.cache is not None
        if self.one_token is not None:
            extent = step_extent(keys, self.cache.capacity)
            try:
                return self.one_token(self.model, ids_B1, position_B1, valid_B1, self.cache, extent)
            except CannotCompile as error:
                self.one_token = None
                logger.warning("writing goes on uncompiled: the one-token step cannot be compiled (%s)", error)
        views = self.model.prepare(
            causal(), {"position": position_B1, **self.labels}, valid=valid_B1, cache=self.cache,
            corrections=self.corrections,
        )  # fmt: skip
        return self.model.logits(self.model.hidden(ids_B1, views, self.cache)[:, 0])

    def _prefill(self) -> Tensor:
        """Read the prompts; equal ones, as when one is sampled often, once."""
        different, copies_B = distinct([tuple(text.tokens) for text in self.texts], self.model.device)
        self.cache = self.model.new_cache(len(different), self.capacity)
        logits_BV = self._read(different, self.cache)
        if len(different) == len(self.texts):
            return logits_BV
        self.cache = self.cache.gather(copies_B)
        return logits_BV[copies_B]

    def _reread(self, texts: Sequence[CausalText]) -> Tensor:
        """Read whole texts without a cache; return the logits of the token after each, `[N, V]`."""
        return self._read([text.tokens for text in texts], None)

    def _read(self, sequences: Sequence[Sequence[int]], cache: Cache | None) -> Tensor:
        """Read whole sequences in one pass; return the logits of the token after each, `[B, V]`."""
        ids_BR, position_BR, valid_BR = pad_right(sequences, [0] * len(sequences), self.model.device)
        views = self.model.prepare(causal(), {"position": position_BR}, valid=valid_BR, cache=cache)
        hidden_BRD = self.model.hidden(ids_BR, views, cache)
        return self.model.logits(hidden_BRD[range(len(sequences)), [len(ids) - 1 for ids in sequences]])
