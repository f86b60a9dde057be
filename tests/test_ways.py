"""The ways of writing that a network was trained for."""

from __future__ import annotations

import pytest

from anyorder.errors import UserError
from anyorder.ways import LEFT_TO_RIGHT, Way, check_ways, refuse_unless_causal

TWO_STREAM = Way(name="left-to-right", shifted=False)
DIFFUSION = Way(name="diffusion", shifted=False, mask_token_id=3)


def test_the_default_is_one_of_the_ways() -> None:
    check_ways([LEFT_TO_RIGHT, DIFFUSION], "diffusion")
    with pytest.raises(UserError, match=r"default_way is 'blocks': give one of the ways, which are \['diffusion'\]\."):
        check_ways([DIFFUSION], "blocks")
    with pytest.raises(UserError, match=r"ways is \['left-to-right', 'left-to-right'\]: give each .* once\."):
        check_ways([LEFT_TO_RIGHT, TWO_STREAM], "left-to-right")


def test_causal_tools_need_logits_of_the_next_token() -> None:
    refuse_unless_causal([LEFT_TO_RIGHT], "left-to-right")
    refuse_unless_causal([DIFFUSION, LEFT_TO_RIGHT], "diffusion")
    for way in (DIFFUSION, TWO_STREAM):
        with pytest.raises(UserError, match=f"this network writes by '{way.name}' .*: load a network"):
            refuse_unless_causal([way], way.name)
