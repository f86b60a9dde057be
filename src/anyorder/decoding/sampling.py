"""From scores to tokens: greedy or drawn, each row from a generator of its own.

Shapes: B rows, V tokens of the vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from anyorder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token; above 0, logits are divided by it and a token is drawn.
        top_k: only this many most probable tokens may be drawn (ties with the last of them stay).
        top_p: only the fewest tokens whose probabilities add up to this may be drawn.
        seed: with the number of a row, decides the draws of that row.

    The filters are transformers', in its order: temperature, top-k, top-p. They never exclude the most
    probable token, so they change nothing at temperature 0.

    Raises:
        UserError: a field has a value that no distribution can have.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        warm = _is_number(self.temperature) and self.temperature >= 0
        self._require("temperature", warm, "give 0 for the most probable token, or a number above 0 to sample")
        some = self.top_k is None or (_is_whole(self.top_k) and self.top_k > 0)
        self._require("top_k", some, "give a whole number above 0, or None to keep every token")
        share = self.top_p is None or (_is_number(self.top_p) and 0 < self.top_p <= 1)
        self._require("top_p", share, "give a probability above 0 and at most 1, or None to keep every token")
        self._require("seed", _is_whole(self.seed), "give a whole number")

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise UserError(f"{name} is {getattr(self, name)!r}: {remedy}.")

    def generators(self, rows: Iterable[int]) -> list[torch.Generator]:
        """One source of random numbers per row, which depends on nothing but the seed and the row's number."""
        return [_generator(self.seed, row) for row in rows]

    def log_probs(self, logits_BV: Tensor) -> Tensor:
        """Logarithms of the distribution that `choose` draws from, [B, V].

        At temperature 0, where nothing is drawn, it is the network's own: log softmax of the logits. Half
        precision is widened to float32, and to float64 where tokens are drawn.
        """
        if self.temperature == 0:
            return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(dim=-1)
        filters = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k is not None:
            filters.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            filters.append(TopPLogitsWarper(self.top_p))
        # These filters look at the scores alone, never at the ids before.
        no_ids = torch.empty(len(logits_BV), 0, dtype=torch.long, device=logits_BV.device)
        scores_BV: Tensor = filters(no_ids, logits_BV.double())  # type: ignore[arg-type]
        return scores_BV.log_softmax(dim=-1)

    def choose(self, logits_BV: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """A token for each row.

        Args:
            logits_BV: the scores of one position of each row.
            generators: those of the same rows; each is asked for one number where tokens are drawn.

        Returns:
            Token ids and their logarithms of probability in `log_probs`, both [B].
        """
        log_probs_BV = self.log_probs(logits_BV)
        if self.temperature == 0:
            token_B = logits_BV.argmax(dim=-1)
        else:
            # The inverse of the cumulative distribution: one number per row, the same on every device. A token
            # of probability 0 does not raise the sum, so "right" steps over it; and u < 1 keeps below the total.
            u_B = torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
            total_BV = log_probs_BV.exp().cumsum(dim=-1)
            drawn_B1 = u_B.to(total_BV.device)[:, None] * total_BV[:, -1:]
            token_B = torch.searchsorted(total_BV, drawn_B1, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
        return token_B, log_probs_BV.gather(-1, token_B[:, None])[:, 0]


def _generator(seed: int, row: int) -> torch.Generator:
    # Hashed, because with seed + row, say, row 1 of seed 0 would draw as row 0 of seed 1 does. PyTorch's generator
    # on the CPU reads 32 bits of its seed.
    digest = hashlib.blake2b(f"{seed} {row}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
