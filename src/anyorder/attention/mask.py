"""What an attention call needs to know: the request that a backend compiles, and the mask that it makes of it.

Shape suffixes: B batch, Q query rows, K keys, H heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.visibility import Everything, Labels, Visibility


@dataclass(frozen=True)
class BiasTerm:
    """`value` is added to the scores of all pairs in `relation`, e.g. the log weight of a segment."""

    relation: Visibility
    value: float | Tensor
    """A number, or one per sample `[batch]`; finite, since minus infinity on all that a row sees is NaN."""

    def __post_init__(self) -> None:
        if not bool(torch.as_tensor(self.value).isfinite().all()):
            remedy = "give finite numbers, and hide keys by visibility"
            raise UserError(f"the bias on {self.relation} is {self.value}: {remedy}.")

    def value_per_sample(self, device: torch.device) -> Tensor:
        """`[batch]`, or `[1]` for one number, in float64."""
        return torch.as_tensor(self.value, dtype=torch.float64, device=device).reshape(-1)

    def select(self, sample_N: Tensor) -> BiasTerm:
        """The term of these samples of the batch, repeats allowed."""
        return BiasTerm(self.relation, self.value_per_sample(sample_N.device)[sample_N])


@dataclass(frozen=True)
class Tempered:
    """Pairs of rows and keys that have a softmax of their own; 1 and 1 change nothing.

    Attributes:
        relation: the pairs.
        temperature: their scores are divided by it.
        scale: factor of the logarithm of the sum of their exponentials.

    Raises:
        UserError: a number is not above 0.
    """

    relation: Visibility
    temperature: float
    scale: float

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("scale", self.scale)):
            if not (0 < value < math.inf):
                raise UserError(f"the {name} of {self.relation} is {value}: give a number above 0.")


class Corrections(NamedTuple):
    """What changes the scores of a pass.

    Attributes:
        bias: terms that are added to them.
        tempered: keys that have a softmax of their own; None: one softmax for all.
    """

    bias: Sequence[BiasTerm] = ()
    tempered: Tempered | None = None

    def select(self, sample_N: Tensor) -> Corrections:
        """Those of these samples of the batch, repeats allowed."""
        return self._replace(bias=[term.select(sample_N) for term in self.bias])


NO_CORRECTIONS = Corrections()


@dataclass(frozen=True)
class Request:
    """The pairs of rows and keys of one forward pass, for which a backend makes a mask.

    Attributes:
        visibility: the rule.
        query, key: labels of rows and keys, each `[batch, rows]` and `[batch, keys]`.
        present: which keys exist, boolean `[batch, keys]`; None: all.
        valid: which rows are no padding, boolean `[batch, rows]`; None: all.
        bias: terms that are added to the scores.
        tempered: keys that have a softmax of their own; None: one softmax for all.
    """

    visibility: Visibility
    query: Labels
    key: Labels
    present: Tensor | None = None
    valid: Tensor | None = None
    bias: Sequence[BiasTerm] = ()
    tempered: Tempered | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of rows and of keys."""
        return self.query["position"].shape[1], self.key["position"].shape[1]


@dataclass(frozen=True, kw_only=True)
class AttentionMask(ABC):
    """A request compiled by one backend: made once per forward pass, used by every layer of a kind.

    Attributes:
        empty_BQ: rows without a visible key, boolean; `attend` of this package zeroes their output. None: no such row.
    """

    empty_BQ: Tensor | None = None

    @abstractmethod
    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        """`softmax(scale q k + bias) v` over the visible keys: `[batch, rows, heads, head_dim]`.

        What the rows of `empty_BQ` get is finite, and arbitrary.
        """


class NoPairs(AttentionMask):
    """The mask of a pass without rows or without keys."""

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        return torch.zeros_like(q_BQHD)


def dense_mask(request: Request) -> tuple[Tensor, Tensor | None]:
    """Visible pairs, broadcastable to `[batch, 1, rows, keys]`, and the empty rows, which see every key in it.

    Kernels never meet a row without a key: some of them make NaN of it.
    """
    present = request.present
    if request.visibility == Everything() and present is not None and bool(present.any(-1).all()):
        return present[:, None, None, :], None
    seen_BQK = request.visibility.mask(request.query, request.key, present)
    empty_BQ = ~seen_BQK.any(-1)
    if not bool(empty_BQ.any()):
        return seen_BQK.unsqueeze(1), None
    return (seen_BQK | empty_BQ.unsqueeze(-1)).unsqueeze(1), empty_BQ


def dense_bias(request: Request) -> Tensor | None:
    """The sum of the bias terms, float64, broadcastable to `[batch, 1, rows, keys]`; None without terms."""
    total: Tensor | None = None
    for term in request.bias:
        pairs = term.relation.sees(
            lambda name: request.query[name].unsqueeze(2), lambda name: request.key[name].unsqueeze(1)
        )
        added = torch.where(pairs, term.value_per_sample(pairs.device)[:, None, None], 0.0)
        total = added if total is None else total + added
    return None if total is None else total.unsqueeze(1)
