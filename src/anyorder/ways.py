"""The ways of writing that a network was trained for, and their conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anyorder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of writing that a network was trained for.

    Attributes:
        name: such as "left-to-right"; what `anyorder.generate` calls `order`.
        shifted: the logits of a row are those of the token that comes after it; otherwise those of the row's own
            token.
        mask_token_id: the token that stands for those that are not written yet; None where there is none.
    """

    name: str
    shifted: bool
    mask_token_id: int | None = None


LEFT_TO_RIGHT = Way(name="left-to-right", shifted=True)


def check_ways(ways: Sequence[Way], default: str) -> None:
    """Refuses ways among which `default` is not, or of which two have one name.

    Raises:
        UserError: see above.
    """
    names = [way.name for way in ways]
    if len(set(names)) < len(names):
        raise UserError(f"ways is {names}: give each way of writing once.")
    if default not in names:
        raise UserError(f"default_way is {default!r}: give one of the ways, which are {names}.")


def refuse_unless_causal(ways: Sequence[Way], default: str) -> None:
    """Refuses networks that have no logits for the next token, of which causal tools would make something wrong.

    Raises:
        UserError: there is no shifted way from left to right.
    """
    if not any(way.name == LEFT_TO_RIGHT.name and way.shifted for way in ways):
        raise UserError(
            f"this network writes by {default!r} and has no logits for the next token, which writing from left to "
            "right, transformers' generate, Trainer and evaluation harnesses need: load a network that was trained "
            "for that."
        )
