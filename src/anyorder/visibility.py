"""Who sees whom, as data.

Every row that goes through the network carries integer labels (position, rank, stream, segment,
document, ...), and so does every key. A `Visibility` is an expression over these labels that says
which keys a row may see. It is a value, not a tensor: it compares equal to another one that was
written the same way, and it prints as it was written. `mask` is its meaning in full, a boolean tensor
that everything else is tested against; `attention/` compiles it to what fast kernels take, with
`bounds`, which reasons about whole sets of rows and keys at once, and `simplify`.

Which keys exist at all is no label but a mask of its own, `present`, joined outside the expression:
under `~` a padding key labelled -1 would become visible.

Shape suffixes: B batch, Q query rows, K keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.utils.annotations import AtMost, checked, shown
from anyorder.utils.rng import WORDS, hashed

Labels = Mapping[str, Tensor]
"""Label name to integers `[batch, rows]`."""

LabelGetter = Callable[[str], Tensor]
"""Gives the values of a label, in a shape that broadcasts against the other side's."""

Ranges = Callable[[str], tuple[Tensor, Tensor]]
"""Gives the lowest and the highest value of a label in a set of rows, likewise."""


class Visibility(ABC):
    """An expression over the labels of query rows and keys. Combine with `&`, `|` and `~`."""

    def __and__(self, other: Visibility) -> Visibility:
        return And(self, other)

    def __or__(self, other: Visibility) -> Visibility:
        return Or(self, other)

    def __invert__(self) -> Visibility:
        return Not(self)

    @abstractmethod
    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        """Whether each query row sees each key: booleans of the broadcast shape."""

    @abstractmethod
    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        """For sets of rows and of keys: may any pair see each other, and do all pairs for certain?

        Conservative: "possible" may be too often true, "certain" too often false.
        """

    @abstractmethod
    def names(self) -> frozenset[str]:
        """The labels that the expression reads."""

    def mask(self, query: Labels, key: Labels, present: Tensor | None = None) -> Tensor:
        """The meaning in full: which keys each row sees.

        Args:
            query: labels of the rows, each `[batch, rows]`.
            key: labels of the keys, each `[batch, keys]`.
            present: which keys exist, boolean `[batch, keys]`; all unless given.

        Returns:
            Boolean `[batch, rows, keys]`, true where the row sees the key.

        Raises:
            UserError: the rows do not carry a label that the expression reads.
        """
        self.require_labels(query, key)
        one_query, one_key = next(iter(query.values())), next(iter(key.values()))
        seen_BQK = self.sees(lambda name: query[name].unsqueeze(2), lambda name: key[name].unsqueeze(1))
        seen_BQK = seen_BQK.to(one_query.device).expand(*one_query.shape, one_key.shape[1])
        return seen_BQK if present is None else seen_BQK & present.unsqueeze(1)

    def draw(self, query: Labels, key: Labels, present: Tensor | None = None, sample: int = 0) -> str:
        """A picture in text: a line per query row, `#` where it sees the key and `.` where not."""
        seen_QK = self.mask(query, key, present)[sample].tolist()
        width = len(str(len(seen_QK) - 1))
        return "\n".join(
            f"{row:{width}} " + " ".join("#" if seen else "." for seen in seen_K) for row, seen_K in enumerate(seen_QK)
        )

    def explain(
        self, row: int, query: Labels, key: Labels, present: Tensor | None = None, sample: int = 0
    ) -> str:  # fmt: skip
        """What query row `row` sees, in words, with the rule and the row's own labels."""
        seen_K = self.mask(query, key, present)[sample, row]
        keys = _spans(seen_K.nonzero().flatten().tolist())
        labels = ", ".join(f"{name} {int(query[name][sample, row])}" for name in sorted(self.names()))
        amount = f"sees {int(seen_K.sum())} of {len(seen_K)} keys ({keys})" if keys else "sees no key"
        return f"Row {row}{f' ({labels})' if labels else ''} {amount}. Rule: {self}."

    def simplify(self, query: Ranges, key: Ranges) -> Visibility:
        """The same meaning within these label ranges (one per sample), with all that is certain left out."""
        possible, certain = self.bounds(query, key)
        if bool(certain.all()):
            return Everything()
        if not bool(possible.any()):
            return Not(Everything())
        return self._simplify_parts(query, key)

    def _simplify_parts(self, query: Ranges, key: Ranges) -> Visibility:
        return self

    def require_labels(self, query: Labels, key: Labels) -> None:
        """Raise a `UserError` unless rows and keys carry every label that the expression reads."""
        for side, labels in (("rows", query), ("keys", key)):
            missing = sorted(self.names() - set(labels))
            if missing:
                raise UserError(
                    f"the {side} carry the labels {sorted(labels)}, but {self} reads {missing[0]!r}: "
                    f"give that label to every row."
                )


@dataclass(frozen=True)
class Everything(Visibility):
    """Every row sees every key."""

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return _TRUE

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        return _TRUE, _TRUE

    def names(self) -> frozenset[str]:
        return frozenset()

    def __str__(self) -> str:
        return "everything"


@dataclass(frozen=True)
class _Comparison(Visibility):
    """Compares `key // div + shift` with `query // div`."""

    label: str
    shift: int = 0
    div: int = 1

    def names(self) -> frozenset[str]:
        return frozenset((self.label,))

    def _of_key(self, label: Tensor) -> Tensor:
        divided = self._of_query(label)
        return divided + self.shift if self.shift else divided

    def _of_query(self, label: Tensor) -> Tensor:
        return label if self.div == 1 else torch.div(label, self.div, rounding_mode="floor")

    def _spelled(self, sign: str, shift: int) -> str:
        term = self.label if self.div == 1 else f"{self.label} // {self.div}"
        return f"key.{term}{f' + {shift}' if shift else ''} {sign} query.{term}"


@dataclass(frozen=True)
class NotAfter(_Comparison):
    """`key // div + shift <= query // div`."""

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return self._of_key(key(self.label)) <= self._of_query(query(self.label))

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        query_low, query_high = map(self._of_query, query(self.label))
        key_low, key_high = map(self._of_key, key(self.label))
        return key_low <= query_high, key_high <= query_low

    def __str__(self) -> str:
        return self._spelled("<", 0) if self.shift == 1 else self._spelled("<=", self.shift)


@dataclass(frozen=True)
class Same(_Comparison):
    """`key // div + shift == query // div`."""

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return self._of_key(key(self.label)) == self._of_query(query(self.label))

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        query_low, query_high = map(self._of_query, query(self.label))
        key_low, key_high = map(self._of_key, key(self.label))
        overlap = (key_low <= query_high) & (query_low <= key_high)
        return overlap, overlap & (query_low == key_high) & (key_low == query_high)

    def __str__(self) -> str:
        return self._spelled("==", self.shift)


@dataclass(frozen=True)
class SideIs(Visibility):
    """The label of the key, or of the query row, is a constant."""

    side: Literal["key", "query"]
    label: str
    value: int

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return (key if self.side == "key" else query)(self.label) == self.value

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        low, high = (key if self.side == "key" else query)(self.label)
        possible = (low <= self.value) & (self.value <= high)
        return possible, possible & (low == high)

    def names(self) -> frozenset[str]:
        return frozenset((self.label,))

    def __str__(self) -> str:
        return f"{self.side}.{self.label} == {self.value}"


@dataclass(frozen=True)
class Chance(Visibility):
    """A seeded hash of (sample, query position, key position) falls below `rate`.

    The same pair always gets the same answer, in any batch and on any backend. Reads the labels
    "sample" and "position".
    """

    rate: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"chance has the rate {self.rate}: give a number from 0 to 1.")

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return hashed(query("sample"), self.seed, query("position"), key("position")) < round(self.rate * WORDS)

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        pairs = torch.ones_like(query("position")[0] + key("position")[0], dtype=torch.bool)
        return pairs & (self.rate > 0), pairs & (self.rate >= 1)

    def names(self) -> frozenset[str]:
        return frozenset(("sample", "position"))

    def __str__(self) -> str:
        return f"chance {self.rate:g}"


@dataclass(frozen=True)
class _Pair(Visibility):
    """Two expressions, joined."""

    left: Visibility
    right: Visibility

    def names(self) -> frozenset[str]:
        return self.left.names() | self.right.names()


@dataclass(frozen=True)
class And(_Pair):
    """Both."""

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return self.left.sees(query, key) & self.right.sees(query, key)

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        left, right = self.left.bounds(query, key), self.right.bounds(query, key)
        return left[0] & right[0], left[1] & right[1]

    def _simplify_parts(self, query: Ranges, key: Ranges) -> Visibility:
        match self.left.simplify(query, key), self.right.simplify(query, key):
            case (Everything(), only) | (only, Everything()):
                return only
            case left, right:
                return And(left, right)

    def __str__(self) -> str:
        return f"({self.left} and {self.right})"


@dataclass(frozen=True)
class Or(_Pair):
    """Either."""

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return self.left.sees(query, key) | self.right.sees(query, key)

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        left, right = self.left.bounds(query, key), self.right.bounds(query, key)
        return left[0] | right[0], left[1] | right[1]

    def _simplify_parts(self, query: Ranges, key: Ranges) -> Visibility:
        match self.left.simplify(query, key), self.right.simplify(query, key):
            case (Not(Everything()), only) | (only, Not(Everything())):
                return only
            # "before or same" is "not after"
            case (NotAfter(a, 1, d), Same(b, 0, e)) | (Same(b, 0, e), NotAfter(a, 1, d)) if (a, d) == (b, e):
                return NotAfter(a, 0, d)
            case left, right:
                return Or(left, right)

    def __str__(self) -> str:
        return f"({self.left} or {self.right})"


@dataclass(frozen=True)
class Not(Visibility):
    """The contrary, over the keys that are present."""

    inner: Visibility

    def sees(self, query: LabelGetter, key: LabelGetter) -> Tensor:
        return ~self.inner.sees(query, key)

    def bounds(self, query: Ranges, key: Ranges) -> tuple[Tensor, Tensor]:
        possible, certain = self.inner.bounds(query, key)
        return ~certain, ~possible

    def names(self) -> frozenset[str]:
        return self.inner.names()

    def _simplify_parts(self, query: Ranges, key: Ranges) -> Visibility:
        return Not(self.inner.simplify(query, key))

    def __str__(self) -> str:
        return f"not ({self.inner})"


# ---- relations ------------------------------------------------------------------------------------


def not_after(label: str, *, shift: int = 0, div: int = 1) -> Visibility:
    """Keys with `key.label // div + shift <= query.label // div`."""
    return NotAfter(label, shift, _positive(div))


def before(label: str, *, shift: int = 0, div: int = 1) -> Visibility:
    """Keys with `key.label // div + shift < query.label // div`."""
    return NotAfter(label, shift + 1, _positive(div))


def same(label: str, *, shift: int = 0, div: int = 1) -> Visibility:
    """Keys with `key.label // div + shift == query.label // div`."""
    return Same(label, shift, _positive(div))


def key_is(label: str, value: int) -> Visibility:
    """Keys whose label has this value."""
    return SideIs("key", label, value)


def query_is(label: str, value: int) -> Visibility:
    """All keys, for rows whose label has this value."""
    return SideIs("query", label, value)


def chance(rate: float, seed: int) -> Visibility:
    """Each pair of row and key with probability `rate`, drawn by a seeded hash: mask annealing."""
    return Chance(rate, seed)


# ---- named constructors ---------------------------------------------------------------------------


def causal() -> Visibility:
    """Left to right: a row sees itself and what comes before it."""
    return not_after("position")


def bidirectional() -> Visibility:
    """Masked diffusion: every row sees every key."""
    return Everything()


def groups() -> Visibility:
    """Two streams: content rows see their own group and those before, query rows only those before."""
    return before("rank") | same("rank") & same("stream")


def chunks(size: int) -> Visibility:
    """Local attention in fixed chunks of `size` positions; narrows another visibility."""
    return same("position", div=size)


def sliding_window(size: int) -> Visibility:
    """The latest `size` positions, the row's own included; narrows another visibility."""
    return Not(not_after("position", shift=_positive(size)))  # in a form that PyTorch can trace


def documents() -> Visibility:
    """Packed documents do not see each other; narrows another visibility."""
    return same("document")


def prefix() -> Visibility:
    """Everyone sees the prefix (`prefix` 1) in full, and the rest from left to right."""
    return causal() | key_is("prefix", 1)


def segments() -> Visibility:
    """Fusion: a segment sees itself and the parts before it; what follows sees all segments."""
    return not_after("order") & (before("part") | same("segment"))


def block_diffusion(causal_context: bool = False) -> Visibility:
    """Noised rows see their own noised block and the clean blocks before; clean rows clean blocks.

    Args:
        causal_context: clean rows see only the clean rows up to their own.
    """
    seen = before("block") & key_is("noised", 0) | same("block") & same("noised")
    return seen & (not_after("position") | key_is("noised", 1)) if causal_context else seen


def open_rows() -> Visibility:
    """Rows that are `open` see all keys that there are, the others from left to right."""
    return causal() | query_is("open", 1)


def annealed(rate: float, seed: int) -> Visibility:
    """From causal (`rate` 0) to bidirectional (`rate` 1), as a causal network learns to diffuse."""
    return causal() | chance(rate, seed)


# ---- plain masks, for an attention of one's own --------------------------------------------------

MOST_GROUPS = 2**20
"""Columns that a target mapping may have; a larger number is no number of a group."""


LONGEST = 2**18
"""Tokens that a mask can be made for: with a byte for each pair, those take 64 GiB."""


@checked()
def generate_grouping_masks(
    group_ids: Tensor, seq_len: int | None = None, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Who sees whom in the two streams, and which group each token is predicted with.

    Args:
        group_ids: the rank of each token, whole numbers from 0, `[length]` or `[batch, length]`, in any order.
        seq_len: the length, for callers that state it.
        device: of the masks; that of `group_ids` unless given.

    Returns:
        The content mask (a token sees its own group and those before), the query mask (only those before), each boolean
        `[..., length, length]`, rows by keys, true where the row sees the key; and the target mapping, boolean
        `[..., length, groups]`, true at the group that the row's token is predicted with. It has a column for each
        group id, but as many as tokens at least.

    Raises:
        UserError: the group ids are no whole numbers from 0 of such a shape, or of another length than `seq_len`.
    """
    if group_ids.dim() not in (1, 2) or group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        found = f"{group_ids.dtype} of shape {list(group_ids.shape)}"
        raise UserError(f"group_ids is {found}: give whole numbers [length] or [batch, length].")
    length = group_ids.shape[-1]
    if seq_len is not None and seq_len != length:
        raise UserError(f"seq_len is {seq_len}, but group_ids has {length} tokens: give as many, or leave it out.")
    lowest, highest = (0, -1) if group_ids.numel() == 0 else map(int, group_ids.aminmax())
    if lowest < 0 or highest >= MOST_GROUPS:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"group_ids has the group {wrong}: number the groups from 0, in the order of writing.")
    rank_BL = group_ids.reshape(-1, length).to(group_ids.device if device is None else _device(device))
    content = {"rank": rank_BL, "stream": torch.zeros_like(rank_BL)}
    query = {"rank": rank_BL, "stream": torch.ones_like(rank_BL)}
    group_G = torch.arange(max(length, highest + 1), device=rank_BL.device)
    masks = groups().mask(content, content), groups().mask(query, content), rank_BL[..., None] == group_G
    content_mask, query_mask, target_mapping = (mask.reshape(*group_ids.shape, mask.shape[-1]) for mask in masks)
    return content_mask, query_mask, target_mapping


@checked()
def create_chunked_attention_mask(
    seq_len: Annotated[int, AtMost(LONGEST)], attention_chunk_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Causal attention within chunks of a fixed size: boolean `[seq_len, seq_len]`, true where a row sees a key.

    Raises:
        UserError: the length is negative, or no such mask fits into memory, or the size of a chunk is not above 0.
    """
    if seq_len < 0:
        raise UserError(f"seq_len is {seq_len}: give the number of tokens, 0 or more.")
    labels = {"position": torch.arange(seq_len, device=None if device is None else _device(device)).unsqueeze(0)}
    return (causal() & chunks(attention_chunk_size)).mask(labels, labels)[0]


# ---- helpers --------------------------------------------------------------------------------------

_TRUE = torch.ones((), dtype=torch.bool)  # of no dimension, so that it joins tensors of any shape and device


def _positive(size: int) -> int:
    if size < 1:
        raise UserError(f"the size of a window, chunk or division is {size}: give a whole number above 0.")
    return size


def _spans(numbers: list[int]) -> str:
    """`0-3, 7` for [0, 1, 2, 3, 7]."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device is {shown(device)}: give one of PyTorch's, such as 'cpu' or 'cuda'.") from error
