"""The order in which the tokens of a text are written: kinds of order, their names, and plans for given texts."""

from anyorder.orders.kinds import Halves, LeftToRight, MostConfident, Order, Random, RightToLeft, Spaced, Spans

__all__ = ["Halves", "LeftToRight", "MostConfident", "Order", "Random", "RightToLeft", "Spaced", "Spans"]
