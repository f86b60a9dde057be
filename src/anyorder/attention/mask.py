"""What one attention call may see, made once per forward pass.

Shape suffixes: B batch, Q query rows, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.attention.hints import Hint
from anyorder.attention.tempered import Tempered, TemperedMasks
from anyorder.errors import UserError
from anyorder.visibility import Everything, Labels, Visibility

if TYPE_CHECKING:
    from anyorder.attention.flex import FlexPlan


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
class Request:
    """What a backend is asked to make a mask for.

    Attributes:
        visibility: the rule.
        query, key: labels of rows and keys, each `[batch, rows]` and `[batch, keys]`.
        present: which keys exist, boolean `[batch, keys]`; None: all.
        valid: which rows are wanted, boolean `[batch, rows]`; None: all.
        bias: terms added to the scores.
        tempered: keys that have a softmax of their own; None: one softmax for all.
    """

    visibility: Visibility
    query: Labels
    key: Labels
    present: Tensor | None = None
    valid: Tensor | None = None
    bias: Sequence[BiasTerm] = ()
    tempered: Tempered | None = None


@dataclass(frozen=True)
class AttentionMask:
    """A visibility compiled for one backend.

    Attributes:
        backend: the backend that made it and that attends with it.
        hint: a plain kernel that shows the same; then there is no `seen_B1QK`.
        seen_B1QK: visible pairs, boolean, broadcastable to `[batch, 1, rows, keys]`, with the empty
            rows opened so that no kernel meets one.
        bias_B1QK: added to the scores, float64, broadcastable likewise; None: nothing is added.
        empty_BQ: rows that see nothing and whose output is zero; None: there is no such row.
        flex: what FlexAttention wants instead of the above.
        tempered: the masks of two softmaxes, instead of the above.
        watch: is handed the weights of each call, `[batch, heads, rows, keys]`, by the eager backend, for those who
            look into a network; None: nobody is.
    """

    backend: str
    hint: Hint | None = None
    seen_B1QK: Tensor | None = None
    bias_B1QK: Tensor | None = None
    empty_BQ: Tensor | None = None
    flex: FlexPlan | None = None
    tempered: TemperedMasks | None = None
    watch: Callable[[Tensor], None] | None = None


def dense_mask(request: Request, plain: Visibility) -> tuple[Tensor, Tensor | None]:
    """The opened mask, broadcastable to `[batch, 1, rows, keys]`, and the rows that see nothing."""
    if plain == Everything() and request.present is not None and bool(request.present.any(-1).all()):
        return request.present[:, None, None, :], None
    seen_BQK = plain.mask(request.query, request.key, request.present)
    empty_BQ = ~seen_BQK.any(-1)
    if not bool(empty_BQ.any()):
        return seen_BQK.unsqueeze(1), None
    return (seen_BQK | empty_BQ.unsqueeze(-1)).unsqueeze(1), empty_BQ


def dense_bias(request: Request) -> Tensor | None:
    """The sum of the bias terms, float64, broadcastable to `[batch, 1, rows, keys]`."""
    total: Tensor | None = None
    for term in request.bias:
        pairs = term.relation.sees(
            lambda name: request.query[name].unsqueeze(2), lambda name: request.key[name].unsqueeze(1)
        )
        value_B11 = term.value_per_sample(request.query["position"].device)[:, None, None]
        added = torch.where(pairs, value_B11, 0.0)
        total = added if total is None else total + added
    return None if total is None else total.unsqueeze(1)
