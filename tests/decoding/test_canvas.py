"""Canvases: what is given, and what is to be written."""

from __future__ import annotations

import pytest

from anyorder.decoding.canvas import BLANK, blanks, check_canvases, continuation
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig


def test_a_continuation_ends_in_blanks() -> None:
    assert continuation([5, 6], 3) == [5, 6, BLANK, BLANK, BLANK]
    assert blanks([BLANK, 5, BLANK]) == [0, 2]


@pytest.mark.parametrize(
    ("canvases", "rows", "message"),
    [
        ([], [], "there are 0 prompts: give at least one"),
        ([[1, BLANK]], [0, 1], r"sample_ids is \[0, 1\] for 1 prompts: give each prompt a number of its own"),
        ([[1, BLANK], [1, 2]], [4, 5], "prompt 5 leaves nothing to write: give max_new_tokens, or a gap in it"),
        ([[1, 128, BLANK]], [0], "prompt 0 has the token id 128: give ids from 0 to 127"),
        ([[BLANK] * 65], [0], "prompt 0 has 65 tokens with those to be written, and the network was trained on 64"),
    ],
)
def test_canvases_that_cannot_be_filled(
    tiny_config: ModelConfig, canvases: list[list[int]], rows: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_canvases(tiny_config, canvases, rows)
    check_canvases(tiny_config, [[BLANK], [1, BLANK, 127]], [0, 1])
