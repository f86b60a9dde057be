"""From the name of an order to the order."""

from __future__ import annotations

from anyorder.orders.kinds import Halves, LeftToRight, MostConfident, Order, Random, RightToLeft, Spaced, Spans
from anyorder.orders.names import NAMES, of_any_order
from anyorder.orders.plan import GroupPlan

AnyOrder = GroupPlan | Order | MostConfident
"""What says in which order a canvas is filled."""

CLASSES: dict[str, type[Order] | type[MostConfident]] = {
    "any-order": LeftToRight,
    "groups": LeftToRight,
    "right-to-left": RightToLeft,
    "random": Random,
    "halves": Halves,
    "spaced": Spaced,
    "spans": Spans,
    "confidence": MostConfident,
}
"""The class of each of `anyorder.orders.names.NAMES`."""


def order_named(words: str) -> AnyOrder:
    """Return the order of a name of the mode "any-order", such as "random" or "groups:4".

    "any-order" alone is from left to right, one token at a time, through the query rows.

    Raises:
        UserError: there is no such order, its number is none, or its mode is another one.
    """
    name = of_any_order(words)
    field = NAMES[name.kind]
    return CLASSES[name.kind](**({} if field is None or name.number is None else {field: name.number}))
