"""The order in which the tokens of a text are written: kinds of order, their names, and plans for given texts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyorder.orders.kinds import Halves, LeftToRight, MostConfident, Order, Random, RightToLeft, Spaced, Spans

__all__ = ["Halves", "LeftToRight", "MostConfident", "Order", "Random", "RightToLeft", "Spaced", "Spans"]


def __getattr__(name: str) -> object:
    # On first use, because PyTorch takes seconds to import, and the names of orders are checked before it is.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("anyorder.orders.kinds"), name)
