"""Logits of the next token, with a cache or without, compiled or not.

Shapes: B texts, R tokens fed in a pass, D hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Queries, Reader
from anyorder.model.compiled import CannotCompile, Compiled
from anyorder.model.step import step_extent
from anyorder.utils.ragged import pad_right
from anyorder.visibility import causal

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama

logger = logging.getLogger(__name__)


class CausalReader(Reader[CausalText]):
    """Reads each token once: the cache holds all of each text but its last token, for as long as it is written.

    Args:
        model: the network.
        texts: the batch.
        use_cache: False computes all rows again in each pass: the slow, obvious twin.
        one_token: the compiled one-token step; None for an uncompiled one.
    """

    passes = 0

    def __init__(
        self, model: Llama, texts: Sequence[CausalText], *, use_cache: bool = True, one_token: Compiled | None = None
    ) -> None:
        self.model = model
        self.texts = texts
        self.use_cache = use_cache
        self.one_token = one_token
        self.cache: Cache | None = None
        self.capacity = max(text.limit for text in texts)

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
            return self._read([text.tokens for text in queries], None)
        if self.cache is None:
            return self._prefill()
        fresh = [text.tokens[-1:] if text in queries else [] for text in self.texts]
        ids_BR, position_BR, valid_BR = pad_right(
            fresh, [len(text.tokens) - 1 for text in self.texts], self.model.device
        )
        logits_BV = self._one_token(ids_BR, position_BR, valid_BR, keys=max(len(text.tokens) for text in queries))
        if len(queries) == len(self.texts):
            return logits_BV
        return logits_BV[[b for b, text in enumerate(self.texts) if text in queries]]

    def _one_token(self, ids_B1: Tensor, position_B1: Tensor, valid_B1: Tensor, keys: int) -> Tensor:
        assert self.cache is not None
        if self.one_token is not None:
            extent = step_extent(keys, self.cache.capacity)
            try:
                return self.one_token(self.model, ids_B1, position_B1, valid_B1, self.cache, extent)
            except CannotCompile as error:
                self.one_token = None
                logger.warning("writing goes on uncompiled: the one-token step cannot be compiled (%s)", error)
        views = self.model.prepare(causal(), {"position": position_B1}, valid=valid_B1, cache=self.cache)
        return self.model.logits(self.model.hidden(ids_B1, views, self.cache)[:, 0])

    def _prefill(self) -> Tensor:
        """Read the prompts; equal ones, as when one is sampled often, once."""
        prompts = [tuple(text.tokens) for text in self.texts]
        different = list(dict.fromkeys(prompts))
        self.cache = self.model.new_cache(len(different), self.capacity)
        logits_BV = self._read(different, self.cache)
        if len(different) == len(prompts):
            return logits_BV
        copies = torch.tensor([different.index(prompt) for prompt in prompts], device=self.model.device)
        self.cache = self.cache.gather(copies)
        return logits_BV[copies]

    def _read(self, sequences: Sequence[Sequence[int]], cache: Cache | None) -> Tensor:
        """Read whole sequences in one pass; return the logits of the token after each, `[B, V]`."""
        ids_BR, position_BR, valid_BR = pad_right(sequences, [0] * len(sequences), self.model.device)
        views = self.model.prepare(causal(), {"position": position_BR}, valid=valid_BR, cache=cache)
        hidden_BRD = self.model.hidden(ids_BR, views, cache)
        return self.model.logits(hidden_BRD[range(len(sequences)), [len(ids) - 1 for ids in sequences]])
