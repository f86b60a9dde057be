"""Orders by name, such as "left-to-right", "groups:4" or "blocks:32": here alone are such words read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from anyorder.errors import UserError
from anyorder.orders.kinds import Halves, LeftToRight, MostConfident, Order, Random, RightToLeft, Spaced, Spans
from anyorder.orders.plan import GroupPlan

AnyOrder = GroupPlan | Order | MostConfident
"""What says in which order a canvas is filled."""

NAMES: dict[str, tuple[type[Order] | type[MostConfident], str | None]] = {
    "any-order": (LeftToRight, None),
    "groups": (LeftToRight, "size"),
    "right-to-left": (RightToLeft, "size"),
    "random": (Random, "size"),
    "halves": (Halves, None),
    "spaced": (Spaced, "stride"),
    "spans": (Spans, "length"),
    "confidence": (MostConfident, "size"),
}
"""Of each order of the way "any-order", its class, and the field that a number behind a colon sets."""

WAY_OF_ORDER = {
    "left-to-right": "left-to-right",
    **dict.fromkeys(NAMES, "any-order"),
    "diffusion": "diffusion",
    "blocks": "blocks",
}
"""The way of writing that an order asks for, by what stands before its colon."""

_NUMBERED = {"blocks", *(name for name, (_, field) in NAMES.items() if field)}


class OrderName(NamedTuple):
    """What the words of an order say.

    Attributes:
        kind: what stands before the colon.
        number: what stands behind it; None without a colon.
    """

    kind: str
    number: int | None

    @property
    def way(self) -> str:
        """The name of the way of writing that is asked for."""
        return WAY_OF_ORDER[self.kind]


def read_order(words: object, field: str = "order", others: Iterable[str] = ()) -> OrderName:
    """What the words of an order say.

    Args:
        words: such as "random" or "groups:4".
        field: what the words are called where they were given.
        others: names that may stand there as well and are known elsewhere.

    Raises:
        UserError: there is no such order, or its number is none.
    """
    kind, colon, number = words.partition(":") if isinstance(words, str) else ("", "", "")
    fits = number.isdecimal() and int(number) > 0 and kind in _NUMBERED if colon else True
    if kind not in WAY_OF_ORDER or not fits:
        raise UserError(f"{field} is {words!r}: give one of {_told([*WAY_OF_ORDER, *others])}.")
    return OrderName(kind, int(number) if colon else None)


def order_named(words: str) -> AnyOrder:
    """The order of a name that the way "any-order" has, such as "random" or "groups:4".

    "any-order" alone is from left to right, one token at a time, through the query rows.

    Raises:
        UserError: there is no such order, its number is none, or its way is another one.
    """
    name = read_order(words)
    if name.kind not in NAMES:
        raise UserError(f"order is {words!r}, which is of another way than any-order: give one of {_told(NAMES)}.")
    order, field = NAMES[name.kind]
    return order(**({} if field is None or name.number is None else {field: name.number}))


def _told(names: Iterable[str]) -> str:
    known = ", ".join(f"{name}:N" if name in _NUMBERED else name for name in names)
    return f"{known}, where :N, a number above 0, may be left out"
