"""The modes that a network was trained for."""

from __future__ import annotations

import pytest
import torch

from anyorder.errors import UserError
from anyorder.model.modes import (
    ANY_ORDER,
    LEFT_TO_RIGHT,
    Mode,
    blocks,
    check_modes,
    diffusion,
    find_mode,
    refuse_unless_causal,
)

DIFFUSION = diffusion(3)


def test_the_default_is_one_of_the_ways() -> None:
    check_modes([LEFT_TO_RIGHT, DIFFUSION], "diffusion")
    with pytest.raises(
        UserError, match=r"default_mode is 'blocks': give one of the modes, which are \['diffusion'\]\."
    ):
        check_modes([DIFFUSION], "blocks")
    with pytest.raises(UserError, match=r"modes is \['left-to-right', 'left-to-right'\]: give each .* once\."):
        check_modes([LEFT_TO_RIGHT, LEFT_TO_RIGHT], "left-to-right")


def test_the_row_that_predicts_a_position() -> None:
    """Where logits are shifted the one before, but position 0 has none."""
    shifted = diffusion(3, shifted=True)
    assert [shifted.row(position) for position in range(4)] == [0, 0, 1, 2]
    assert [DIFFUSION.row(position) for position in range(4)] == [0, 1, 2, 3]
    position = torch.tensor([[0, 1], [5, 0]])
    assert shifted.row(position).tolist() == [[0, 0], [4, 0]]
    assert torch.equal(DIFFUSION.row(position), position)


def test_causal_tools_need_logits_of_the_next_token() -> None:
    refuse_unless_causal([LEFT_TO_RIGHT], "left-to-right")
    refuse_unless_causal([DIFFUSION, LEFT_TO_RIGHT], "diffusion")
    for mode in (DIFFUSION, ANY_ORDER, Mode(name="left-to-right", shifted=False)):
        with pytest.raises(UserError, match=f"this network writes by '{mode.name}' .*: load a network"):
            refuse_unless_causal([mode], mode.name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "backwards"}, "the mode 'backwards' is unknown: give one of left-to-right, any-order"),
        ({"name": "diffusion"}, "mask_token_id is None for the mode 'diffusion': give the id of the mask token"),
        ({"name": "blocks", "mask_token_id": 3}, "block_length is None for the mode 'blocks': give tokens of a block"),
        ({"name": "blocks", "mask_token_id": 3, "block_length": 0}, "block_length is 0 for the mode 'blocks'"),
    ],
)
def test_ways_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mode(shifted=False, **fields)


def test_a_way_that_was_not_trained_for_names_the_training() -> None:
    modes = (LEFT_TO_RIGHT, blocks(3, 8))
    assert find_mode(modes, "blocks").block_length == 8
    with pytest.raises(UserError, match=r"writes by 'left-to-right' and 'blocks', not by 'any-order': train .* permut"):
        find_mode(modes, "any-order")
    with pytest.raises(UserError, match=r"^the mode 'foo' is unknown: give one of left-to-right, any-"):
        find_mode(modes, "foo")
