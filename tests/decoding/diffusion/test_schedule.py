"""The blocks of a canvas and their steps; what is refused stands in `test_diffusion`."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from anyorder.decoding.canvas import BLANK, blanks, continuation
from anyorder.decoding.diffusion.schedule import Block, plan_blocks

EVEN: dict[str, Any] = {"uneven": "refuse", "aligned": False}


def test_lengths_and_steps_that_divide() -> None:
    canvas = continuation([1, 2, 3], 12)
    assert plan_blocks(canvas, 0, block_length=4, steps=6, **EVEN) == [
        Block(3, 7, 4, 2),
        Block(7, 11, 4, 2),
        Block(11, 15, 4, 2),
    ]
    assert plan_blocks(canvas, 0, block_length=None, steps=5, **EVEN) == [Block(3, 15, 12, 5)]
    assert plan_blocks(canvas, 0, block_length=12, steps=None, **EVEN) == [Block(3, 15, 12, 12)]


def test_aligned_blocks_are_counted_from_the_first_position() -> None:
    canvas = continuation([1, 2, 3, 4, 5, 6], 7)
    blocks = plan_blocks(canvas, 0, block_length=4, steps=7, uneven="refuse", aligned=True)
    assert blocks == [Block(4, 8, 2, 3), Block(8, 12, 4, 2), Block(12, 13, 1, 2)]


def test_blocks_without_a_gap_are_left_out() -> None:
    canvas = [1, BLANK, 2, 3, 4, BLANK]
    assert plan_blocks(canvas, 0, block_length=2, steps=None, uneven="distribute", aligned=False) == [
        Block(1, 3, 1, 1),
        Block(5, 6, 1, 1),
    ]


@given(
    canvas=st.lists(st.sampled_from([1, BLANK]), min_size=1, max_size=30).filter(lambda canvas: BLANK in canvas),
    block_length=st.integers(1, 31),
    more=st.integers(0, 20),
    aligned=st.booleans(),
)
def test_every_gap_is_in_one_block(canvas: list[int], block_length: int, more: int, aligned: bool) -> None:
    blocks = plan_blocks(
        canvas, 0, block_length=block_length, steps=len(canvas) + more, uneven="distribute", aligned=aligned
    )
    covered = [position for block in blocks for position in range(block.start, block.stop)]
    assert covered == sorted(set(covered))
    assert set(blanks(canvas)) <= set(covered)
    assert all(block.stop - block.start <= block_length and block.steps > 0 for block in blocks)
    steps = {block.steps for block in blocks}
    assert max(steps) - min(steps) <= 1
    assert not aligned or all(block.start % block_length == 0 for block in blocks)
