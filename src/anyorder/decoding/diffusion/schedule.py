"""In which blocks a canvas is written, and in how many steps each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError

Uneven = Literal["refuse", "distribute"]


class Block(NamedTuple):
    """Positions from `start` to `stop` (excluded), of which `masks` are to be written, in `steps` steps."""

    start: int
    stop: int
    masks: int
    steps: int


def plan_blocks(
    canvas: Sequence[int], sample_id: int, *, block_length: int | None, steps: int | None, uneven: Uneven, aligned: bool
) -> list[Block]:
    """Divide a canvas into blocks, from left to right; blocks without blanks are left out.

    Args:
        canvas: token ids, `BLANK` where something is to be written.
        sample_id: its number, for messages.
        block_length: tokens of a block; None makes one block of all.
        steps: for the whole canvas; None writes a token a step.
        uneven: what happens where lengths or steps do not divide: "distribute" makes the last block shorter and gives
            the first blocks one step more.
        aligned: blocks are counted from position 0, as a network with blocks was trained, and the last one may be
            shorter; otherwise from the first blank.

    Raises:
        UserError: lengths or steps do not divide and `uneven` refuses that, or there are fewer steps than blocks.
    """
    first, end = canvas.index(BLANK), len(canvas)
    length = block_length or end - first
    begin = first // length * length if aligned else first
    if uneven == "refuse" and not aligned and (end - first) % length:
        raise UserError(
            f"block_length is {length} and prompt {sample_id} has {end - first} positions from the first gap on: "
            'give a divisor, or uneven="distribute", which makes the last block shorter.'
        )
    starts = range(begin, end, length)
    each, more = divmod(steps or 0, len(starts))
    if steps is not None and steps < len(starts):
        raise UserError(
            f"steps is {steps} and prompt {sample_id} has {len(starts)} blocks: give at least one step a block."
        )
    if uneven == "refuse" and not aligned and more:
        raise UserError(
            f"steps is {steps} and prompt {sample_id} has {len(starts)} blocks: give a multiple, or "
            'uneven="distribute", which gives the first blocks one step more.'
        )
    blocks = []
    for number, start in enumerate(starts):
        stop = min(start + length, end)
        masks = list(canvas[start:stop]).count(BLANK)
        if masks:
            blocks.append(Block(start, stop, masks, masks if steps is None else each + (number < more)))
    return blocks
