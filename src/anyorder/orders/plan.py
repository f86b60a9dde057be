"""Plans: which tokens of a text are given, which are written, and in which groups, one after the other.

A plan depends on no network. Its ranks are all that visibility needs: a content row sees ranks up to its own, a query
row ranks below its own. From one plan come the rows of a parallel pass (training, likelihood) and the groups of a
decoder.

Shape suffixes: B batch, L text length, K query rows, R = L + K rows.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.orders.kinds import Halves, LeftToRight, Order, Random, RightToLeft, Spaced, Spans
from anyorder.utils import rng
from anyorder.utils.annotations import checked, shown
from anyorder.utils.numbers import is_whole
from anyorder.utils.ragged import pad
from anyorder.utils.reprs import counted

Lengths = int | Sequence[int]
"""Tokens of one text, or of each."""

Marks = Tensor | Sequence[int] | Sequence[Sequence[bool]]
"""Which tokens: booleans `[batch, length]` or a list for each text, or how many at the start of each text."""


@dataclass(frozen=True)
class PlanRows:
    """The rows of one pass of two streams: content rows, then query rows, each sorted by rank.

    Attributes:
        content_BL: index in the text of the token that each content row carries; padding comes last.
        query_BK: index in the text of the token that each query row predicts; 0 for padding.
        labels: "position", "rank" and "stream" (0 content, 1 query) of all rows, each `[batch, L + K]`, for
            `anyorder.visibility.groups`. Positions do not count padding.
        valid_BR: rows that are no padding.
    """

    content_BL: Tensor
    query_BK: Tensor
    labels: dict[str, Tensor]
    valid_BR: Tensor

    @property
    def n_keys(self) -> int:
        """Content rows, which alone offer keys."""
        return self.content_BL.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupPlan:
    """For each text of a batch: the rank of each token, and which are given.

    Attributes:
        rank_BL: int64; tokens of one rank are one group, written at once, and lower ranks come first. Ranks need not
            be consecutive. Padding is moved behind all others, so that it sorts last.
        given_BL: tokens that are given; their ranks are below all others of their text.
        valid_BL: tokens that are no padding.

    Raises:
        UserError: wrong shapes or types, nothing to predict, or ranks that clash with given tokens.
    """

    rank_BL: Tensor
    given_BL: Tensor
    valid_BL: Tensor

    def __post_init__(self) -> None:
        rank_BL = self.rank_BL
        if rank_BL.dim() != 2 or rank_BL.dtype != torch.int64:
            raise UserError(f"rank_BL is {rank_BL.dtype} of shape {list(rank_BL.shape)}: give int64 [batch, length].")
        for name, mask_BL in (("given_BL", self.given_BL), ("valid_BL", self.valid_BL)):
            if mask_BL.shape != rank_BL.shape or mask_BL.dtype != torch.bool:
                found = f"{mask_BL.dtype} of shape {list(mask_BL.shape)}"
                raise UserError(f"{name} is {found}: give booleans of the shape of the ranks, {list(rank_BL.shape)}.")
        given_BL = self.given_BL & self.valid_BL
        predicted_BL = self.valid_BL & ~given_BL
        if nothing := [
            sample for sample, any_predicted in enumerate(predicted_BL.any(1).tolist()) if not any_predicted
        ]:
            raise UserError(f"sample {nothing[0]} has nothing to predict: leave at least one of its tokens not given.")
        lowest_B1 = rank_BL.masked_fill(~predicted_BL, _FAR).amin(1, keepdim=True)
        clashing_BL = given_BL & (rank_BL >= lowest_B1)
        if bool(clashing_BL.any()):
            sample, index = clashing_BL.nonzero()[0].tolist()
            raise UserError(
                f"token {index} of sample {sample} is given but has rank {int(rank_BL[sample, index])}, while a token "
                f"to be predicted has rank {int(lowest_B1[sample])}: give given tokens the lowest ranks."
            )
        last = rank_BL.masked_fill(~self.valid_BL, -_FAR).amax() + 1
        object.__setattr__(self, "rank_BL", torch.where(self.valid_BL, rank_BL, last))
        object.__setattr__(self, "given_BL", given_BL)

    def __repr__(self) -> str:
        ranks = [rank_L[predicted_L] for rank_L, predicted_L in zip(self.rank_BL, self.predicted, strict=True)]
        fewest, most = (choose(len(rank_N.unique()) for rank_N in ranks) for choose in (min, max))
        groups = counted(most, "group") if fewest == most else f"{fewest:,} to {most:,} groups"
        given, written = int(self.given_BL.sum()), int(self.predicted.sum())
        texts = counted(len(ranks), "text")
        return (
            f"{type(self).__name__} of {texts}: {counted(given, 'token')} given, {written:,} to be written, in {groups}"
        )

    # ---- constructors -----------------------------------------------------------------------------

    @classmethod
    @checked("group_ids", "given")
    def from_group_ids(
        cls, group_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], given: Marks | None = None
    ) -> GroupPlan:
        """Make a plan from the rank of each token.

        Args:
            group_ids: whole numbers `[batch, length]`, or a list for each text, of any lengths; the list of a single
                text need not be in another list.
            given: which tokens are given; none unless given.

        Raises:
            UserError: see the class.
        """
        rank_BL, valid_BL = _integers("group_ids", group_ids)
        return cls(rank_BL=rank_BL, given_BL=_marks("given", given, valid_BL), valid_BL=valid_BL)

    @classmethod
    @checked("order")
    def from_order(
        cls, order: Tensor | Sequence[int] | Sequence[Sequence[int]], lengths: Lengths | None = None
    ) -> GroupPlan:
        """Make a plan that writes one token at a time.

        Args:
            order: indices of tokens, first to be written first: `[batch, tokens]`, or a list for each text.
            lengths: of the texts; tokens that are not in the order are given. Unless given, the order names all.

        Raises:
            UserError: an index appears twice or is outside the text, or see the class.
        """
        order_BN, in_order_BN = _integers("order", order)
        counts = in_order_BN.sum(1).tolist()
        lengths = _lengths(counts if lengths is None else lengths, len(counts))
        valid_BL = _starts(lengths, max(lengths))
        rank_BL = torch.zeros(valid_BL.shape, dtype=torch.int64)
        for sample, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            named = order_BN[sample, :count]
            if bool(((named < 0) | (named >= length)).any()) or len(named.unique()) < count:
                raise UserError(
                    f"order is {named.tolist()} for sample {sample}, whose text has {length} tokens: name each token "
                    f"that is to be written once, by a number from 0 to {length - 1}."
                )
            rank_BL[sample, named] = torch.arange(1, count + 1)
        return cls(rank_BL=rank_BL, given_BL=valid_BL & (rank_BL == 0), valid_BL=valid_BL)

    @classmethod
    @checked("given", "predicted")
    def from_masks(
        cls, given: Marks, predicted: Marks, order: Order | None = None, seed: int = 0,
        samples: Sequence[int] | None = None,
    ) -> GroupPlan:  # fmt: skip
        """Make a plan from given tokens (one group, the first) and those to be predicted; the rest is padding.

        Args:
            given, predicted: booleans `[batch, length]`, or a list for each text; never both.
            order: in which the predicted ones are written; from left to right unless given.
            seed, samples: random orders draw by the seed and the number of the sample, 0, 1, 2, ... unless given.

        Raises:
            UserError: a token is both, or see the class.
        """
        predicted_BL, given_BL = _booleans("predicted", predicted), _booleans("given", given)
        if given_BL.shape != predicted_BL.shape:
            shapes = f"{list(given_BL.shape)} and {list(predicted_BL.shape)}"
            raise UserError(f"given and predicted have the shapes {shapes}: give both for the same texts.")
        if bool((given_BL & predicted_BL).any()):
            sample, index = (given_BL & predicted_BL).nonzero()[0].tolist()
            raise UserError(f"token {index} of sample {sample} is both given and to be predicted: choose one.")
        rank_BL = torch.zeros(given_BL.shape, dtype=torch.int64)
        samples = range(len(rank_BL)) if samples is None else samples
        if len(samples) != len(rank_BL):
            raise UserError(f"samples has {len(samples)} numbers for {len(rank_BL)} texts: give one for each.")
        for sample, predicted_L, rank_L in zip(samples, predicted_BL, rank_BL, strict=True):
            groups = (order or LeftToRight()).groups(int(predicted_L.sum()), rng.generator("order", seed, sample))
            rank_L[predicted_L] = groups + 1
        return cls(rank_BL=rank_BL, given_BL=given_BL, valid_BL=given_BL | predicted_BL)

    @classmethod
    @checked("given")
    def ordered(
        cls, order: Order, lengths: Lengths, given: Marks | None = None, seed: int = 0,
        samples: Sequence[int] | None = None,
    ) -> GroupPlan:  # fmt: skip
        """Make a plan that follows an order.

        Args:
            order: see `anyorder.orders`.
            lengths: tokens of the text, or of each text.
            given: which tokens are given, or how many at the start of each text; none unless given.
            seed, samples: random orders draw by the seed and the number of the sample, 0, 1, 2, ... unless given.

        Raises:
            UserError: see the class.
        """
        lengths = _lengths(lengths, 1 if isinstance(lengths, int) else len(lengths))
        valid_BL = _starts(lengths, max(lengths))
        given_BL = _marks("given", given, valid_BL)
        return cls.from_masks(given_BL, valid_BL & ~given_BL, order, seed, samples)

    @classmethod
    @checked("given")
    def sequential(cls, lengths: Lengths, given: Marks | None = None) -> GroupPlan:
        """Plan from left to right, one token at a time. Arguments as in `ordered`, here and below."""
        return cls.ordered(LeftToRight(), lengths, given)

    @classmethod
    @checked("given")
    def reversed(cls, lengths: Lengths, given: Marks | None = None) -> GroupPlan:
        """Plan from right to left, one token at a time."""
        return cls.ordered(RightToLeft(), lengths, given)

    @classmethod
    @checked("given")
    def pairs(cls, lengths: Lengths, given: Marks | None = None) -> GroupPlan:
        """Plan from left to right, two neighbours at a time."""
        return cls.blocks(lengths, 2, given)

    @classmethod
    @checked("given")
    def blocks(cls, lengths: Lengths, size: int, given: Marks | None = None) -> GroupPlan:
        """Plan from left to right, `size` neighbours at a time."""
        return cls.ordered(LeftToRight(size=size), lengths, given)

    @classmethod
    @checked("given")
    def halves(cls, lengths: Lengths, given: Marks | None = None) -> GroupPlan:
        """Plan the left half at once, then the right half."""
        return cls.ordered(Halves(), lengths, given)

    @classmethod
    @checked("given")
    def spaced(cls, lengths: Lengths, stride: int = 2, given: Marks | None = None) -> GroupPlan:
        """Plan every `stride`-th token at once, then their right neighbours, and so on."""
        return cls.ordered(Spaced(stride=stride), lengths, given)

    @classmethod
    @checked("given")
    def random(
        cls, lengths: Lengths, given: Marks | None = None, size: int = 1, seed: int = 0,
        samples: Sequence[int] | None = None,
    ) -> GroupPlan:  # fmt: skip
        """Plan in random order, `size` tokens at a time."""
        return cls.ordered(Random(size=size), lengths, given, seed, samples)

    @classmethod
    @checked("given")
    def spans(
        cls, lengths: Lengths, length: int = 3, given: Marks | None = None, seed: int = 0,
        samples: Sequence[int] | None = None,
    ) -> GroupPlan:  # fmt: skip
        """Plan spans of `length` tokens in the mean, in random order, each from left to right."""
        return cls.ordered(Spans(length=length), lengths, given, seed, samples)

    # ---- what a plan gives ------------------------------------------------------------------------

    @property
    def predicted(self) -> Tensor:
        """Tokens that are to be predicted, boolean `[batch, length]`."""
        return self.valid_BL & ~self.given_BL

    @functools.cached_property
    def position(self) -> Tensor:
        """The true position of each token, which does not count padding: int64 `[batch, length]`."""
        return (self.valid_BL.long().cumsum(1) - 1).clamp(min=0)

    @functools.cached_property
    def steps(self) -> list[list[list[int]]]:
        """For each text, its groups in the order in which they are written, each the indices of its tokens."""
        return [
            [
                (predicted_L & (rank_L == rank)).nonzero().flatten().tolist()
                for rank in rank_L[predicted_L].unique().tolist()
            ]
            for predicted_L, rank_L in zip(self.predicted, self.rank_BL, strict=True)
        ]

    def predict_last(self, counts: Lengths) -> GroupPlan:
        """Return the same order with all tokens given but the last `counts` of each text, and those of their groups.

        Given tokens keep their ranks: among themselves they still see what they saw.

        Raises:
            UserError: a count is below 1, or there are not so many counts as texts.
        """
        counts = _lengths(counts, len(self.rank_BL), "counts")
        last_BL = self.rank_BL.masked_fill(~self.predicted, -_FAR).sort(dim=1, descending=True).values
        column_B = torch.tensor(counts).clamp(max=last_BL.shape[1]) - 1
        bound_B1 = last_BL.gather(1, column_B.to(last_BL.device).unsqueeze(1))
        return dataclasses.replace(self, given_BL=self.given_BL | (self.valid_BL & (self.rank_BL < bound_B1)))

    def to(self, device: torch.device | str) -> GroupPlan:
        """Return the same plan on another device."""
        rank_BL, given_BL, valid_BL = (part.to(device) for part in (self.rank_BL, self.given_BL, self.valid_BL))
        return GroupPlan(rank_BL=rank_BL, given_BL=given_BL, valid_BL=valid_BL)

    def select(self, samples: Sequence[int]) -> GroupPlan:
        """Select the plan of these texts (repeats allowed)."""
        index = torch.tensor(samples, device=self.rank_BL.device)
        return GroupPlan(rank_BL=self.rank_BL[index], given_BL=self.given_BL[index], valid_BL=self.valid_BL[index])

    def rows(self, queries: bool = True) -> PlanRows:
        """Return the rows of one pass over the whole text.

        Sorted by rank, so that content rows of groups of one need no mask but the plain causal one.

        Args:
            queries: False for content rows alone.
        """
        content_BL = self.rank_BL.argsort(dim=1, stable=True)
        count_B = self.predicted.sum(1) * queries
        predicted_first = torch.where(self.predicted, self.rank_BL, _FAR).argsort(dim=1, stable=True)
        slot_K = torch.arange(int(count_B.max()), device=count_B.device)
        query_valid_BK = slot_K < count_B.unsqueeze(1)
        query_BK = torch.where(query_valid_BK, predicted_first[:, : len(slot_K)], 0)
        index_BR = torch.cat((content_BL, query_BK), 1)
        stream_R = torch.arange(index_BR.shape[1], device=count_B.device) >= content_BL.shape[1]
        labels = {
            "position": self.position.gather(1, index_BR),
            "rank": self.rank_BL.gather(1, index_BR),
            "stream": stream_R.long().expand_as(index_BR),
        }
        valid_BR = torch.cat((self.valid_BL.gather(1, content_BL), query_valid_BK), 1)
        return PlanRows(content_BL, query_BK, labels, valid_BR)


# ---- helpers --------------------------------------------------------------------------------------

_FAR = 2**40


def _starts(counts: Sequence[int], length: int) -> Tensor:
    """Return booleans `[batch, length]`, true for the first `counts` of each text."""
    return torch.arange(length) < torch.tensor(counts).unsqueeze(1)


def _lengths(lengths: Lengths, batch: int, name: str = "lengths") -> list[int]:
    listed = [lengths] * batch if isinstance(lengths, int) else list(lengths)
    try:
        listed = [operator.index(length) for length in listed]
    except TypeError:
        listed = []
    if not listed or len(listed) != batch or min(listed) < 1:
        number = "a number of tokens above 0" if name == "lengths" else "a number above 0"
        raise UserError(f"{name} is {lengths!r}: give {number} for each of the texts.")
    return listed


def _integers(name: str, values: Any) -> tuple[Tensor, Tensor]:
    """Return int64 `[batch, length]`, and which entries are no padding of shorter lists."""
    if isinstance(values, Tensor):
        if values.dim() not in (1, 2) or values.dtype not in _WHOLE or values.numel() == 0:
            found = f"{values.dtype} of shape {list(values.shape)}"
            raise UserError(f"{name} is {found}: give whole numbers [batch, length], at least one.")
        values_BL = values.long() if values.dim() == 2 else values.long().unsqueeze(0)
        return values_BL, torch.ones_like(values_BL, dtype=torch.bool)
    try:
        single = len(values) > 0 and not isinstance(values[0], Sequence)
        rows = [[operator.index(value) for value in row] for row in ([values] if single else values)]
    except (TypeError, KeyError):  # of mappings
        rows = []
    if not rows or not all(rows):
        remedy = "give a list of whole numbers for each text, none of them empty"
        raise UserError(f"{name} is {shown(values)}: {remedy}.")
    if any(abs(value) > _FAR for row in rows for value in row):
        raise UserError(f"{name} is {shown(values)}: give smaller numbers.")
    return pad(rows, torch.device("cpu"))


def _booleans(name: str, marks: Any) -> Tensor:
    """Return booleans `[batch, length]` from a tensor or lists; shorter lists are filled with False."""
    if isinstance(marks, Tensor):
        if marks.dim() != 2 or marks.dtype != torch.bool:
            raise UserError(f"{name} is {marks.dtype} of shape {list(marks.shape)}: give booleans [batch, length].")
        return marks
    if (
        not isinstance(marks, Sequence)
        or not marks
        or not all(isinstance(row, Sequence) and all(isinstance(m, bool) for m in row) for row in marks)
    ):
        raise UserError(f"{name} is {shown(marks)}: give a list of booleans for each text.")
    return _integers(name, marks)[0].bool()


def _marks(name: str, marks: Any, valid_BL: Tensor) -> Tensor:
    """Return booleans of the shape of `valid_BL`."""
    if marks is None:
        return torch.zeros_like(valid_BL)
    if isinstance(marks, Sequence) and all(map(is_whole, marks)):
        counts: list[int] = list(marks)
        lengths = valid_BL.sum(1).tolist()
        if len(counts) != len(lengths) or any(not 0 <= n <= most for n, most in zip(counts, lengths, strict=True)):
            raise UserError(f"{name} is {counts} for texts of {lengths} tokens: give a number from 0 for each text.")
        return _starts(counts, valid_BL.shape[1])
    marks_BL = _booleans(name, marks)
    if marks_BL.shape != valid_BL.shape:
        shapes = f"{list(marks_BL.shape)}, but the texts {list(valid_BL.shape)}"
        raise UserError(f"{name} has the shape {shapes}: give one boolean for each token.")
    return marks_BL


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
