"""A canvas: a text with the places that are still to be written, in any order.

It is a list of token ids with `BLANK` where a token is to be written. Tokens that are given may stand anywhere, and
no decoder ever changes them. Continuing a prompt is the canvas that begins with the prompt and ends in blanks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.model.config import ModelConfig

BLANK = -1
"""Stands in a canvas where a token is to be written; no token has this id."""


def continuation(prompt: Sequence[int], new_tokens: int) -> list[int]:
    """The canvas that continues a prompt by this many tokens."""
    return [*prompt, *[BLANK] * new_tokens]


def blanks(canvas: Sequence[int]) -> list[int]:
    """The positions that are to be written, in order."""
    return [position for position, token_id in enumerate(canvas) if token_id == BLANK]


def check_canvases(
    config: ModelConfig, canvases: Sequence[Sequence[int]], rows: Sequence[int], lengths: Sequence[int] | None = None
) -> None:
    """Refuses canvases that the network cannot fill.

    Args:
        config: of the network.
        canvases: the canvases.
        rows: number of each.
        lengths: positions that each takes, where tokens share some; as many as it has tokens unless given.

    Raises:
        UserError: there are none, one has nothing to write, a token id outside the vocabulary, or more positions than
            the network can read.
    """
    if not canvases:
        raise UserError("there are 0 prompts: give at least one.")
    if len(rows) != len(canvases) or len(set(rows)) != len(rows):
        raise UserError(f"rows is {list(rows)} for {len(canvases)} prompts: give each prompt a number of its own.")
    lengths = [len(canvas) for canvas in canvases] if lengths is None else lengths
    for row, canvas, length in zip(rows, canvases, lengths, strict=True):
        if BLANK not in canvas and len(canvas) >= config.context_length:
            remedy = f"shorten it to at most {config.context_length - 1}, which leaves room to write"
            raise UserError(
                f"prompt {row} has {len(canvas)} tokens, and the network was trained on {config.context_length}: "
                f"{remedy}."
            )
        if BLANK not in canvas:
            raise UserError(f"prompt {row} leaves nothing to write: give max_new_tokens, or a gap in it.")
        for token_id in canvas:
            if token_id != BLANK and not 0 <= token_id < config.vocab_size:
                remedy = f"give ids from 0 to {config.vocab_size - 1}, from the tokenizer of this network"
                raise UserError(f"prompt {row} has the token id {token_id}: {remedy}.")
        if length > config.context_length:
            raise UserError(
                f"prompt {row} has {length} tokens with those to be written, and the network was trained on "
                f"{config.context_length}: shorten it, or write fewer."
            )
