"""The modes that a network was trained for, and their conventions.

`KINDS` is the part of the table of modes that the network itself needs; `anyorder.modes` has the rest: decoders,
likelihoods and objectives. Nothing here imports PyTorch, so that a wrong name is refused before it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from anyorder.errors import UserError
from anyorder.utils.annotations import AtMost, check_fields, shown

if TYPE_CHECKING:
    from torch import Tensor

    from anyorder.visibility import Visibility

Positions = TypeVar("Positions", int, "Tensor")


@dataclass(frozen=True, kw_only=True)
class ModeKind:
    """What all networks that write in a mode have in common.

    Attributes:
        name: of the mode, and of its plainest order.
        objective: name of the objective that teaches it.
        other_names: further names of the literature, which every option and argument takes as well.
        visibility: from the mode of a network, who sees whom where a text is read in one pass, as by `model(ids)`.
        labels: from the mode, true positions and validity, both `[batch, length]`, the labels that `visibility` needs
            besides "position"; None where it needs none.
        causal: row i of `model(ids)` predicts token i + 1, and texts are appended to, so that no gap is filled. In
            other modes it predicts token i.
        query_rows: tokens are predicted by query rows, for which the network has weights.
        mask_token: tokens that are not written yet are read as a mask token, which `Mode` must name.
        blocks: a text is written block by block, of the length that `Mode` must name; an order may give another one
            behind a colon.
        diffuses: masks become tokens in any order, several passes each.
    """

    name: str
    objective: str
    other_names: tuple[str, ...] = ()
    visibility: Callable[[Mode], Visibility]
    labels: Callable[[Mode, Tensor, Tensor], Mapping[str, Tensor]] | None = None
    causal: bool = False
    query_rows: bool = False
    mask_token: bool = False
    blocks: bool = False
    diffuses: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names."""
        return (self.name, self.objective, *self.other_names)


def _causal(mode: Mode) -> Visibility:
    from anyorder.visibility import causal  # here and below, because it takes PyTorch

    return causal()


def _bidirectional(mode: Mode) -> Visibility:
    from anyorder.visibility import bidirectional

    return bidirectional()


def _blocks(mode: Mode) -> Visibility:
    from anyorder.visibility import not_after

    assert mode.block_length is not None, "checked where the mode is made"
    return not_after("position", div=mode.block_length)


KINDS: dict[str, ModeKind] = {}
"""The table, by the name of the mode.

The only table of such names: every option and argument that means a mode, an order or an objective takes all of them,
through `mode_named` here, and `read_order` and `objective_named` of `anyorder.orders.names`.
"""

_MODES: dict[str, str] = {}
"""The mode of each of its names."""


def register_kind(kind: ModeKind, taken: Iterable[str] = ()) -> None:
    """Enter a mode into the table; an earlier one of the same name is replaced.

    Args:
        kind: the mode.
        taken: names that mean something else.

    Raises:
        UserError: another mode has one of its names, or the name is taken.
    """
    for name in kind.names:
        if name != spelling(name) or ":" in name:
            raise UserError(f"the mode has the name {name!r}: give one of lower-case letters and hyphens.")
        if _MODES.get(name, kind.name) != kind.name or name in taken:
            raise UserError(f"the mode has the name {name!r}, which means something else already: give another one.")
    KINDS[kind.name] = kind
    _MODES.update(dict.fromkeys(kind.names, kind.name))


def spelling(name: str) -> str:
    """Return a name as the tables have it: in lower case, with hyphens."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def mode_named(name: str) -> str | None:
    """Return the mode that has this name; None for other words."""
    return _MODES.get(spelling(name))


def _own_name(name: str) -> str:
    own = mode_named(name)
    if own is None:
        raise UserError(f"the mode {shown(name)} is unknown: give one of {', '.join(KINDS)}.")
    return own


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A mode that a network was trained for.

    Attributes:
        name: "left-to-right", "any-order", "diffusion", "blocks", or that of a registered mode; another name of
            `KINDS` becomes one of these.
        shifted: the logits of a row are those of the token that comes after it; otherwise those of the row's own
            token.
        mask_token_id: the token in place of those that are not written yet; None where there is none.
        block_length: tokens of a block, where a text is written block by block; otherwise None.
        causal_context: of blocks, whether what is before a block is read from left to right, so that only the block
            that is being written sees all of itself. Blocks then begin behind the prompt, and the first token of each
            is the next token from left to right (Nemotron-Labs-Diffusion, arXiv 2607.05722).

    Raises:
        UserError: there is no such mode, what it needs is missing, or it has no blocks to have a context.
    """

    name: str
    shifted: bool
    mask_token_id: Annotated[int, AtMost(2**31 - 1)] | None = None
    block_length: Annotated[int, AtMost(2**31 - 1)] | None = None
    causal_context: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "the mode's {}")
        object.__setattr__(self, "name", _own_name(self.name))
        if self.kind.mask_token and self.mask_token_id is None:
            raise UserError(f"mask_token_id is None for the mode {self.name!r}: give the id of the mask token.")
        if self.kind.blocks and (self.block_length is None or self.block_length < 1):
            length = f"block_length is {self.block_length!r} for the mode {self.name!r}"
            raise UserError(f"{length}: give tokens of a block.")
        if self.causal_context and (self.shifted or not self.kind.blocks):
            shifted = "shifted " if self.shifted else ""
            raise UserError(
                f"causal_context is True for the {shifted}mode {self.name!r}: leave it out, or give blocks that are "
                "not shifted."
            )

    @property
    def kind(self) -> ModeKind:
        """What it has in common with this mode of other networks."""
        return KINDS[self.name]

    def row(self, position: Positions) -> Positions:
        """Return the position of the row that predicts the token at a position, a number or whole numbers of any shape.

        Position 0, which no row is before, is predicted by its own row also where logits are shifted.
        """
        return position - int(self.shifted) * (position > 0)


for _kind in (
    ModeKind(
        name="left-to-right", objective="autoregressive",
        other_names=("ar", "causal", "causal-lm", "clm", "l2r", "ltr", "next-token"), visibility=_causal, causal=True,
    ),
    ModeKind(
        name="any-order", objective="permutation", other_names=("plm", "two-stream"), visibility=_causal,
        query_rows=True,
    ),
    ModeKind(
        name="diffusion", objective="masked-diffusion", other_names=("mdlm", "mdm"), visibility=_bidirectional,
        mask_token=True, diffuses=True,
    ),
    ModeKind(
        name="blocks", objective="block-diffusion", other_names=("bd3lm",), visibility=_blocks, mask_token=True,
        blocks=True, diffuses=True,
    ),
):  # fmt: skip
    register_kind(_kind)

LEFT_TO_RIGHT = Mode(name="left-to-right", shifted=True)

ANY_ORDER = Mode(name="any-order", shifted=False)


def diffusion(mask_token_id: int, *, shifted: bool = False) -> Mode:
    """Return masked diffusion: every row sees every row, and masked ones become tokens in any order."""
    return Mode(name="diffusion", shifted=shifted, mask_token_id=mask_token_id)


def blocks(mask_token_id: int, block_length: int, *, shifted: bool = False, causal_context: bool = False) -> Mode:
    """Return block diffusion: blocks from left to right, each by masked diffusion."""
    return Mode(
        name="blocks", shifted=shifted, mask_token_id=mask_token_id, block_length=block_length,
        causal_context=causal_context,
    )  # fmt: skip


def check_modes(modes: Sequence[Mode], default: str) -> None:
    """Refuse modes among which `default` is not, or of which two have one name.

    Raises:
        UserError: see above.
    """
    names = [mode.name for mode in modes]
    if len(set(names)) < len(names):
        raise UserError(f"modes is {names}: give each mode once.")
    if default not in names:
        raise UserError(f"default_mode is {shown(default)}: give one of the modes, which are {names}.")


def find_mode(modes: Sequence[Mode], name: str) -> Mode:
    """Return the mode of this name, or of another name that it has.

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
        f"`anyorder pretrain --objective {KINDS[name].objective}`."
    )


def masked_diffusion_mode(modes: Sequence[Mode], default: str) -> Mode:
    """Return the mode that writes whole texts by masked diffusion; of several, the default or the first.

    Raises:
        UserError: the network was not trained for one.
    """
    found = [mode for mode in modes if mode.kind.diffuses and not mode.kind.blocks]
    found.sort(key=lambda mode: mode.name != default)
    return found[0] if found else find_mode(modes, "diffusion")


def refuse_unless_causal(modes: Sequence[Mode], default: str) -> None:
    """Refuse networks that have no logits for the next token, of which causal tools would make something wrong.

    Raises:
        UserError: there is no shifted mode from left to right.
    """
    if not any(mode.kind.causal and mode.shifted for mode in modes):
        raise UserError(
            f"this network writes by {default!r} and has no logits for the next token, which writing from left to "
            "right, transformers' generate, Trainer and evaluation harnesses need: load a network that was trained "
            "for that."
        )
