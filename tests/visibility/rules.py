"""Visibilities paired with the same rule in plain Python, and labels to try them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from anyorder.visibility import Visibility, before, bidirectional, chance, key_is, not_after, query_is, same

Row = Mapping[str, int]

LABELS = ("sample", "position", "rank", "segment")


@dataclass(frozen=True)
class Rule:
    """A visibility, and its slow, obvious twin on one query row and one key."""

    visibility: Visibility
    sees: Callable[[Row, Row], bool]


def loop_mask(
    sees: Callable[[Row, Row], bool], query: Mapping[str, Tensor], key: Mapping[str, Tensor], present: Tensor | None
) -> list[list[list[bool]]]:
    """The mask as a plain loop over samples, rows and keys."""
    return [
        [
            [sees(row, one) and (present is None or bool(present[b, k])) for k, one in enumerate(rows_of(key, b))]
            for row in rows_of(query, b)
        ]
        for b in range(len(next(iter(query.values()))))
    ]


def rows_of(labels: Mapping[str, Tensor], sample: int) -> list[Row]:
    """The labels of each row of one sample, as plain integers."""
    columns = {name: label[sample].tolist() for name, label in labels.items()}
    count = len(next(iter(columns.values())))
    return [{name: column[row] for name, column in columns.items()} for row in range(count)]


def hashed_pair(seed: int, query: Row, key: Row) -> int:
    """MurmurHash3's finaliser over (sample, seed, query position, key position), in Python's integers."""

    def finalise(word: int) -> int:
        word &= 0xFFFFFFFF
        word ^= word >> 16
        word = word * 0x85EBCA6B % 2**32
        word ^= word >> 13
        word = word * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    word = finalise(query["sample"] + 0x9E3779B9)
    for part in (seed, query["position"], key["position"]):
        word = finalise(word ^ part)
    return word


def relations() -> st.SearchStrategy[Rule]:
    """One relation of any kind."""
    label = st.sampled_from(LABELS)
    number = st.integers(-3, 3)
    div = st.integers(1, 4)

    def of_not_after(name: str, shift: int, div: int) -> Rule:
        return Rule(
            not_after(name, shift=shift, div=div), lambda q, k: k[name] // div + shift <= q[name] // div
        )  # fmt: skip

    def of_before(name: str, shift: int, div: int) -> Rule:
        return Rule(before(name, shift=shift, div=div), lambda q, k: k[name] // div + shift < q[name] // div)

    def of_same(name: str, shift: int, div: int) -> Rule:
        return Rule(same(name, shift=shift, div=div), lambda q, k: k[name] // div + shift == q[name] // div)

    def of_chance(rate: float, seed: int) -> Rule:
        return Rule(chance(rate, seed), lambda q, k: hashed_pair(seed, q, k) < round(rate * 2**32))

    return st.one_of(
        st.builds(of_not_after, label, number, div),
        st.builds(of_before, label, number, div),
        st.builds(of_same, label, number, div),
        st.builds(lambda name, value: Rule(key_is(name, value), lambda q, k: k[name] == value), label, number),
        st.builds(lambda name, value: Rule(query_is(name, value), lambda q, k: q[name] == value), label, number),
        st.builds(of_chance, st.sampled_from((0.0, 0.3, 0.7, 1.0)), st.integers(-5, 5)),
        st.just(Rule(bidirectional(), lambda q, k: True)),
    )


def rules(max_leaves: int = 6) -> st.SearchStrategy[Rule]:
    """Any combination of relations."""

    def combine(parts: st.SearchStrategy[Rule]) -> st.SearchStrategy[Rule]:
        return st.one_of(
            st.builds(
                lambda a, b: Rule(a.visibility & b.visibility, lambda q, k: a.sees(q, k) and b.sees(q, k)), parts, parts
            ),
            st.builds(
                lambda a, b: Rule(a.visibility | b.visibility, lambda q, k: a.sees(q, k) or b.sees(q, k)), parts, parts
            ),
            st.builds(lambda a: Rule(~a.visibility, lambda q, k: not a.sees(q, k)), parts),
        )

    return st.recursive(relations(), combine, max_leaves=max_leaves)


def tables(
    batch: int, rows: int, names: tuple[str, ...] = LABELS, low: int = -4, high: int = 7
) -> st.SearchStrategy[dict[str, Tensor]]:
    """Labels of rows, each `[batch, rows]`, different for each sample."""
    column = st.lists(st.integers(low, high), min_size=batch * rows, max_size=batch * rows)
    return st.fixed_dictionaries(
        {name: column.map(lambda values: torch.tensor(values, dtype=torch.int64).view(batch, rows)) for name in names}
    )


def flags(batch: int, rows: int) -> st.SearchStrategy[Tensor]:
    """Booleans `[batch, rows]`."""
    column = st.lists(st.booleans(), min_size=batch * rows, max_size=batch * rows)
    return column.map(lambda values: torch.tensor(values, dtype=torch.bool).view(batch, rows))
