"""A canvas: a text with the positions that are still to be written, in any order.

It is a list of token ids with `BLANK` where a token is to be written. Given tokens may be anywhere, and no
decoder ever changes them. Continuing a prompt is the canvas that begins with the prompt and ends in blanks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anyorder.decoding.checks import check_room, check_sample_ids, check_token_ids
from anyorder.errors import UserError
from anyorder.visibility import Visibility

if TYPE_CHECKING:
    from anyorder.model.config import ModelConfig

BLANK = -1
"""Marks a position of a canvas where a token is to be written; no token has this id."""


def continuation(prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Return the canvas that continues a prompt by this many tokens."""
    return [*prompt, *[BLANK] * new_tokens]


def blanks(canvas: Sequence[int]) -> list[int]:
    """Return the positions that are to be written, in order."""
    return [position for position, token_id in enumerate(canvas) if token_id == BLANK]


class CanvasLayout:
    """How canvases are read: each token at its index in the canvas, under the visibility of the mode alone.

    A subclass lets tokens share positions or narrows the visibility, as fusion does.

    Attributes:
        lengths: positions that each canvas takes; as many as it has tokens where None.
    """

    lengths: Sequence[int] | None = None

    def narrow(
        self, rows: Sequence[int], visibility: Visibility, labels: dict[str, Tensor]
    ) -> tuple[Visibility, dict[str, Tensor], dict[str, Any]]:
        """Return visibility, labels and other arguments of `Llama.prepare` for a pass.

        Args:
            rows: indices of the canvases that are read.
            visibility: of the mode.
            labels: of what is read, with "position" `[rows, places]`, the index in the canvas.
        """
        return visibility, labels, {}


PLAIN = CanvasLayout()


def check_canvases(
    config: ModelConfig,
    canvases: Sequence[Sequence[int]],
    sample_ids: Sequence[int],
    lengths: Sequence[int] | None = None,
) -> None:
    """Refuse canvases that the network cannot fill.

    Args:
        config: of the network.
        canvases: the canvases.
        sample_ids: number of each.
        lengths: positions that each takes, where tokens share some; as many as it has tokens unless given.

    Raises:
        UserError: there are none, one has nothing to write, a token id outside the vocabulary, or more positions than
            the network can read.
    """
    check_sample_ids(sample_ids, len(canvases))
    lengths = [len(canvas) for canvas in canvases] if lengths is None else lengths
    for sample_id, canvas, length in zip(sample_ids, canvases, lengths, strict=True):
        if BLANK not in canvas:
            check_room(config, sample_id, len(canvas))
            raise UserError(f"prompt {sample_id} leaves nothing to write: give max_new_tokens, or a gap in it.")
        check_token_ids(config, (token_id for token_id in canvas if token_id != BLANK), f"prompt {sample_id}")
        if length > config.context_length:
            raise UserError(
                f"prompt {sample_id} has {length} tokens with those to be written, and the network was trained on "
                f"{config.context_length}: shorten it, or write fewer."
            )
