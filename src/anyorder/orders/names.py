"""Orders and objectives by name, such as "left-to-right", "groups:4" or "blocks:32": the one place that reads them.

Nothing here needs PyTorch, so that a wrong name is refused before it is imported; `anyorder.orders.by_name` makes
objects of the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from anyorder.errors import UserError
from anyorder.model.modes import KINDS, mode_named, spelling
from anyorder.utils.annotations import shown

NAMES: dict[str, str | None] = {
    "any-order": None,
    "groups": "size",
    "right-to-left": "size",
    "random": "size",
    "halves": None,
    "spaced": "stride",
    "spans": "length",
    "confidence": "size",
}
"""Of each order of the mode "any-order", the field that a number behind a colon sets."""

LONGEST_NUMBER = 100
"""Digits of a number behind a colon, leading zeros included."""

MIXTURE = "mixture"
"""The objective that has others for parts."""


def order_names() -> list[str]:
    """Return what may come before the colon of an order: the names of modes, and the orders of the mode "any-order"."""
    return [name for mode in KINDS for name in (NAMES if mode in NAMES else (mode,))]


def objectives() -> list[str]:
    """Return the names of the objectives, which may be parts of a mixture, too."""
    return [kind.objective for kind in KINDS.values()]


def _is_numbered(name: str) -> bool:
    return NAMES[name] is not None if name in NAMES else KINDS[name].blocks


class OrderName(NamedTuple):
    """The words of an order, read.

    Attributes:
        kind: the name before the colon.
        number: the number behind it; None without a colon.
    """

    kind: str
    number: int | None

    @property
    def mode(self) -> str:
        """The name of the mode that writes in this order."""
        return "any-order" if self.kind in NAMES else self.kind


def read_order(words: object, field: str = "order", others: Iterable[str] = ()) -> OrderName:
    """Read the words of an order; a name of a mode or of an objective (`anyorder.model.modes.KINDS`) is one, too.

    Args:
        words: such as "random" or "groups:4".
        field: what the words are called where they were given.
        others: further names that are accepted there and known elsewhere.

    Raises:
        UserError: there is no such order, or its number is none.
    """
    found = _read(words)
    if found is None:
        name = spelling(words.partition(":")[0]) if isinstance(words, str) else ""
        close = get_close_matches(name, [*order_names(), *others], n=1, cutoff=0.7)
        meant = f"did you mean {close[0]}? If not, " if close and close[0] != name else ""
        raise UserError(f"{field} is {shown(words)}: {meant}give one of {_listed([*order_names(), *others])}.")
    return found


def objective_named(words: str, field: str = "objective") -> OrderName:
    """Return the objective of this name, which may be that of the mode or the order that it teaches.

    Args:
        words: such as "masked-diffusion", "diffusion", "random" or "blocks:32".
        field: what the words are called where they were given.

    Returns:
        The objective's own name, and the number behind the colon: tokens of a block.

    Raises:
        UserError: there is no such objective, or the words say more of an order than an objective has.
    """
    if spelling(words) == MIXTURE:
        return OrderName(MIXTURE, None)
    found = _read(words)
    if found is None:
        close = get_close_matches(spelling(words), objectives(), n=1, cutoff=0.6)
        meant = f"did you mean {close[0]}? If not, " if close else ""
        raise UserError(f"{field} is {shown(words)}: {meant}give one of {', '.join((*objectives(), MIXTURE))}.")
    objective = KINDS[found.mode].objective
    plain = found.number is None and found.kind in (found.mode, "random")
    if not plain and not KINDS[found.mode].blocks:
        raise UserError(
            f"{field} is {shown(words)}, one order of those in which a network of {objective} writes: give {objective}."
        )
    return OrderName(objective, found.number)


def _read(words: object) -> OrderName | None:
    kind, colon, number = words.partition(":") if isinstance(words, str) else ("", "", "")
    kind = mode_named(kind) or spelling(kind)
    if kind not in order_names():
        return None
    if not colon:
        return OrderName(kind, None)
    is_number = number.isdecimal() and len(number) < LONGEST_NUMBER and 0 < int(number) < 2**63
    return OrderName(kind, int(number)) if is_number and _is_numbered(kind) else None


def of_any_order(words: str) -> OrderName:
    """Read the words of an order of the mode "any-order".

    Raises:
        UserError: there is no such order, its number is none, or it is of another mode.
    """
    name = read_order(words)
    if name.kind not in NAMES:
        raise UserError(
            f"order is {shown(words)}, which is of another mode than any-order: give one of {_listed(NAMES)}."
        )
    return name


def _listed(names: Iterable[str]) -> str:
    known = ", ".join(f"{name}:N" if name in order_names() and _is_numbered(name) else name for name in names)
    return f"{known}, where :N, a number above 0, may be left out"
