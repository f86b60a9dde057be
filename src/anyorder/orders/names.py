"""Orders and objectives by name, such as "left-to-right", "groups:4" or "blocks:32": here alone are such words read.

Nothing here needs PyTorch, so that a wrong name is refused before it is imported; `anyorder.orders.by_name` makes
objects of the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from anyorder.errors import UserError
from anyorder.model.modes import TRAINED_BY, mode_named, spelling
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

MODE_OF_ORDER = {
    "left-to-right": "left-to-right",
    **dict.fromkeys(NAMES, "any-order"),
    "diffusion": "diffusion",
    "blocks": "blocks",
}
"""The mode that an order asks for, by what stands before its colon."""

_NUMBERED = {"blocks", *(name for name, field in NAMES.items() if field)}

MIXTURE = "mixture"
"""The objective that has others for parts."""

OBJECTIVES = tuple(TRAINED_BY.values())
"""What can be learnt, also as parts of a mixture."""


class OrderName(NamedTuple):
    """What the words of an order say.

    Attributes:
        kind: what stands before the colon.
        number: what stands behind it; None without a colon.
    """

    kind: str
    number: int | None

    @property
    def mode(self) -> str:
        """The name of the mode that is asked for."""
        return MODE_OF_ORDER[self.kind]


def read_order(words: object, field: str = "order", others: Iterable[str] = ()) -> OrderName:
    """What the words of an order say; a name of a mode or of an objective (`anyorder.model.modes.NAMES`) is one, too.

    Args:
        words: such as "random" or "groups:4".
        field: what the words are called where they were given.
        others: names that may stand there as well and are known elsewhere.

    Raises:
        UserError: there is no such order, or its number is none.
    """
    found = _read(words)
    if found is None:
        name = spelling(words.partition(":")[0]) if isinstance(words, str) else ""
        close = get_close_matches(name, [*MODE_OF_ORDER, *others], n=1, cutoff=0.7)
        meant = f"did you mean {close[0]}? If not, " if close and close[0] != name else ""
        raise UserError(f"{field} is {shown(words)}: {meant}give one of {_told([*MODE_OF_ORDER, *others])}.")
    return found


def objective_named(words: str, field: str = "objective") -> OrderName:
    """The objective that any name of its own, or of the mode or the order that it teaches, stands for.

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
        close = get_close_matches(spelling(words), OBJECTIVES, n=1, cutoff=0.6)
        meant = f"did you mean {close[0]}? If not, " if close else ""
        raise UserError(f"{field} is {shown(words)}: {meant}give one of {', '.join((*OBJECTIVES, MIXTURE))}.")
    objective = TRAINED_BY[found.mode]
    plain = found.number is None and found.kind in (found.mode, "random")
    if not plain and found.kind != "blocks":
        raise UserError(
            f"{field} is {shown(words)}, one order of those in which a network of {objective} writes: give {objective}."
        )
    return OrderName(objective, found.number)


def _read(words: object) -> OrderName | None:
    kind, colon, number = words.partition(":") if isinstance(words, str) else ("", "", "")
    kind = mode_named(kind) or spelling(kind)
    fits = number.isdecimal() and 0 < int(number) < 2**63 and kind in _NUMBERED if colon else True
    return OrderName(kind, int(number) if colon else None) if kind in MODE_OF_ORDER and fits else None


def of_any_order(words: str) -> OrderName:
    """What the words of an order say that the mode "any-order" has.

    Raises:
        UserError: there is no such order, its number is none, or its way is another one.
    """
    name = read_order(words)
    if name.kind not in NAMES:
        raise UserError(f"order is {words!r}, which is of another mode than any-order: give one of {_told(NAMES)}.")
    return name


def _told(names: Iterable[str]) -> str:
    known = ", ".join(f"{name}:N" if name in _NUMBERED else name for name in names)
    return f"{known}, where :N, a number above 0, may be left out"
