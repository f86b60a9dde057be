"""The modes that a network was trained for, and their conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from anyorder.errors import UserError
from anyorder.utils.annotations import AtMost, check_fields, shown

if TYPE_CHECKING:
    from torch import Tensor

Positions = TypeVar("Positions", int, "Tensor")

NAMES: dict[str, tuple[str, ...]] = {
    "left-to-right": ("autoregressive", "ar", "causal", "causal-lm", "clm", "l2r", "ltr", "next-token"),
    "any-order": ("permutation", "plm", "two-stream"),
    "diffusion": ("masked-diffusion", "mdlm", "mdm"),
    "blocks": ("block-diffusion", "bd3lm"),
}
"""Of each mode, the objective that teaches it, and further names of the literature.

The only table of such names: every option and argument that means a mode, an order or an objective takes all
of them, through `way_named` here, and `read_order` and `objective_named` of `anyorder.orders.names`.
"""

TRAINED_BY = {mode: names[0] for mode, names in NAMES.items()}
"""Of each mode, the objective that teaches it."""

_MODES = {name: mode for mode, names in NAMES.items() for name in (mode, *names)}


def spelling(name: str) -> str:
    """A name as the tables have it: in lower case, with hyphens."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def mode_named(name: str) -> str | None:
    """The mode that any of its names stands for; None for other words."""
    return _MODES.get(spelling(name))


def _own_name(name: str) -> str:
    own = mode_named(name)
    if own is None:
        raise UserError(f"the mode {shown(name)} is unknown: give one of {', '.join(TRAINED_BY)}.")
    return own


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A mode that a network was trained for.

    Attributes:
        name: "left-to-right", "any-order", "diffusion" or "blocks"; another name of `NAMES` becomes one of these.
        shifted: the logits of a row are those of the token that comes after it; otherwise those of the row's own
            token.
        mask_token_id: the token that stands for those that are not written yet; None where there is none.
        block_length: tokens of a block, where a text is written block by block; otherwise None.

    Raises:
        UserError: there is no such mode, or what it needs is missing.
    """

    name: str
    shifted: bool
    mask_token_id: Annotated[int, AtMost(2**31 - 1)] | None = None
    block_length: Annotated[int, AtMost(2**31 - 1)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "the mode's {}")
        object.__setattr__(self, "name", _own_name(self.name))
        if self.name in ("diffusion", "blocks") and self.mask_token_id is None:
            raise UserError(f"mask_token_id is None for the mode {self.name!r}: give the id of the mask token.")
        if self.name == "blocks" and (self.block_length is None or self.block_length < 1):
            raise UserError(f"block_length is {self.block_length!r} for the mode 'blocks': give tokens of a block.")

    def row(self, position: Positions) -> Positions:
        """The position of the row that predicts the token at a position, a number or whole numbers of any shape.

        Nothing stands before position 0, which where logits are shifted is predicted by its own row all the same.
        """
        return position - int(self.shifted) * (position > 0)


LEFT_TO_RIGHT = Mode(name="left-to-right", shifted=True)

ANY_ORDER = Mode(name="any-order", shifted=False)


def diffusion(mask_token_id: int, *, shifted: bool = False) -> Mode:
    """Masked diffusion: every row sees every row, and masked ones become tokens in any order."""
    return Mode(name="diffusion", shifted=shifted, mask_token_id=mask_token_id)


def blocks(mask_token_id: int, block_length: int, *, shifted: bool = False) -> Mode:
    """Block diffusion: blocks from left to right, each by masked diffusion."""
    return Mode(name="blocks", shifted=shifted, mask_token_id=mask_token_id, block_length=block_length)


def check_modes(modes: Sequence[Mode], default: str) -> None:
    """Refuses modes among which `default` is not, or of which two have one name.

    Raises:
        UserError: see above.
    """
    names = [mode.name for mode in modes]
    if len(set(names)) < len(names):
        raise UserError(f"modes is {names}: give each mode once.")
    if default not in names:
        raise UserError(f"default_mode is {shown(default)}: give one of the modes, which are {names}.")


def find_mode(modes: Sequence[Mode], name: str) -> Mode:
    """The mode of this name, or of another name that it has.

    Raises:
        UserError: there is no such mode, or the network was not trained for it.
    """
    name = _own_name(name)
    for mode in modes:
        if mode.name == name:
            return mode
    known = " and ".join(repr(mode.name) for mode in modes)
    raise UserError(
        f"this network writes by {known}, not by {name!r}: train it for that from this checkpoint, with "
        f"`anyorder pretrain --objective {TRAINED_BY[name]}`."
    )


def refuse_unless_causal(modes: Sequence[Mode], default: str) -> None:
    """Refuses networks that have no logits for the next token, of which causal tools would make something wrong.

    Raises:
        UserError: there is no shifted mode from left to right.
    """
    if not any(mode.name == LEFT_TO_RIGHT.name and mode.shifted for mode in modes):
        raise UserError(
            f"this network writes by {default!r} and has no logits for the next token, which writing from left to "
            "right, transformers' generate, Trainer and evaluation harnesses need: load a network that was trained "
            "for that."
        )
