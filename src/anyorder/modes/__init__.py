"""The table of modes: how each writes, scores and learns.

`ENTRIES` has a `ModeEntry` for each mode by its name. `anyorder.generate`, `anyorder.fuse`, training, evaluation and
inspection read it, and know no mode themselves, so a new one is a new entry: see docs/write-your-own-mode.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyorder.decoding.canvas import PLAIN, CanvasLayout
from anyorder.errors import UserError
from anyorder.model.compiled import with_packages
from anyorder.model.modes import KINDS, Mode, ModeKind, refuse_unless_causal, register_kind
from anyorder.modes.any_order import AnyOrderMode
from anyorder.modes.diffusion import BlocksMode, DiffusionMode
from anyorder.modes.entry import Decoder, LearningOptions, ModeEntry, Options, Order, exact_log_probs, given_and_scored
from anyorder.modes.left_to_right import LeftToRightMode
from anyorder.orders.names import MIXTURE, NAMES, read_order

if TYPE_CHECKING:
    from anyorder.model.config import ModelConfig
    from anyorder.model.llama import Llama

__all__ = [
    "ENTRIES", "Decoder", "LearningOptions", "ModeEntry", "ModeKind", "Options", "Order", "decoder_of", "entry_of",
    "exact_log_probs", "given_and_scored", "register", "resolve",
]  # fmt: skip

ENTRIES: dict[str, ModeEntry] = {
    entry.kind.name: entry for entry in (LeftToRightMode(), AnyOrderMode(), DiffusionMode(), BlocksMode())
}
"""The table. Of several modes that could write a text, an earlier one is taken."""


def register(entry: ModeEntry) -> None:
    """Enter a mode into the table; an earlier one of the same name is replaced.

    Its names are then understood wherever a mode, an order or an objective is named. Register it before a network
    that has the mode is made or loaded.

    Raises:
        UserError: another mode, an order or an objective has one of its names.
    """
    register_kind(entry.kind, taken=({*NAMES} - {*KINDS}) | {MIXTURE})
    ENTRIES[entry.kind.name] = entry


def entry_of(mode: Mode | str) -> ModeEntry:
    """Return the entry of a mode, given itself or by its name.

    Raises:
        UserError: its name is known, but it is in no entry.
    """
    name = mode if isinstance(mode, str) else mode.name
    if name not in ENTRIES:
        raise UserError(f"the mode {name!r} has no entry in the table of modes: give it to anyorder.modes.register.")
    return ENTRIES[name]


def resolve(order: Order | None, config: ModelConfig) -> tuple[Mode, Any]:
    """Return the mode of the network that writes in an order, and what its decoder takes as the order.

    Args:
        order: a name or an object; the network's default mode unless given.
        config: of the network.

    Raises:
        UserError: there is no such order, or the network was not trained for its mode.
    """
    if order is not None and not isinstance(order, str):
        return config.mode(_mode_of_object(order, config)), order
    words = config.default_mode if order is None else order
    name = read_order(words).mode
    if KINDS[name].causal:
        refuse_unless_causal(config.modes, config.default_mode)
    return config.mode(name), entry_of(name).order(words)


def _mode_of_object(order: object, config: ModelConfig) -> str:
    """The mode that an object names; else that of the network's modes that takes it, the default first."""
    taking = [name for name, entry in ENTRIES.items() if isinstance(order, entry.order_classes)]
    if not taking:
        read_order(order)  # says what an order is
    named: str | None = getattr(order, "mode", None)
    has = {mode.name for mode in config.modes}
    return named or next((name for name in (config.default_mode, *taking) if name in has & {*taking}), taking[0])


def decoder_of(
    mode: Mode, order: Any, model: Llama, options: Options, layout: CanvasLayout = PLAIN
) -> Decoder:  # fmt: skip
    """Return what writes in this order.

    Args:
        mode, order: from `resolve`.
        model: the network.
        options: how texts are written.
        layout: of the canvases.

    Raises:
        UserError: options that the mode does not have, or that exclude each other; or layers cannot be compiled.
    """
    entry = entry_of(mode)
    if options.num_beams != 1 and "num_beams" not in entry.options:
        raise UserError(f"num_beams is {options.num_beams!r}, but beams are written from left to right: leave it out.")
    several = options.num_samples not in (None, 1) and options.num_beams == 1
    if several and not entry.draws(order, options.sampling):
        same = f"num_samples is {options.num_samples} at temperature 0, where all samples are the same"
        raise UserError(f"{same}: give a temperature above 0, or leave out num_samples.")
    if options.compile is not False:
        model = with_packages(model, making=options.compile is True and "compile" not in entry.options)
    return entry.decoder(model, mode, order, options, layout)
