"""Checks of whole numbers, of which a boolean is none."""

from __future__ import annotations

from typing import TypeGuard

from anyorder.errors import UserError


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(name: str, value: object, otherwise: str = "") -> None:
    """Refuse what is no whole number above 0.

    Args:
        name: of the value, as the message has it.
        value: the number.
        otherwise: end of the remedy, such as ", or None for all".

    Raises:
        UserError: see above.
    """
    if not is_whole(value) or value < 1:
        raise UserError(f"{name} is {value!r}: give a whole number above 0{otherwise}.")
