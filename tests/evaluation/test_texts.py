"""Texts to measure on, and orders by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyorder.errors import UserError
from anyorder.evaluation.texts import cut_texts, gap_marks, orders_by_name
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.orders.kinds import LeftToRight, Random, RightToLeft
from tests.model.networks import network
from tests.writers import BOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def test_texts_are_cut_to_one_length(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time there was a little girl named Lily")
    ids = TOKENIZER("Once upon a time there was a little girl named Lily")["input_ids"]
    config = network(bos_token_id=BOS).config
    texts = cut_texts(tmp_path / "a.txt", TOKENIZER, config, length=4, most=9)
    assert texts == [[BOS, *ids[start : start + 3]] for start in range(0, len(ids) - 2, 3)]
    assert cut_texts(tmp_path / "a.txt", TOKENIZER, config, length=4, most=2) == texts[:2]
    assert cut_texts(tmp_path / "a.txt", TOKENIZER, network().config, length=3, most=1) == [ids[:3]]


def test_what_is_given_around_a_gap() -> None:
    assert gap_marks(4, None) == [True, False, False, False]
    assert gap_marks(7, 3) == [True, True, False, False, False, True, True]
    assert gap_marks(3, 1) == [True, False, True]
    for gap in (0, 2):
        with pytest.raises(UserError, match=rf"^gap is {gap} in texts of 3 tokens: give a number from 1 to 1\."):
            gap_marks(3, gap)


def test_orders_that_suit_a_network() -> None:
    config = network(modes=(LEFT_TO_RIGHT, ANY_ORDER, diffusion(3))).config
    assert orders_by_name(["random", "groups:2", "left-to-right", "diffusion"], config) == {
        "random": Random(), "groups:2": LeftToRight(size=2), "left-to-right": "left-to-right", "diffusion": "diffusion",
    }  # fmt: skip
    assert list(orders_by_name([], config)) == [
        "left-to-right", "any-order", "right-to-left", "random", "groups:4", "diffusion"
    ]  # fmt: skip
    assert orders_by_name([], network(modes=(ANY_ORDER,)).config)["right-to-left"] == RightToLeft()
    assert list(orders_by_name([], network().config)) == ["left-to-right"]
    with pytest.raises(UserError, match=r"^order is 'confidence', which depends on what is written: a given"):
        orders_by_name(["confidence"], config)
    with pytest.raises(UserError, match="not by 'any-order': train it"):
        orders_by_name(["random"], network().config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 99}, r"^no text in .* has 99 tokens: give a smaller length, or longer texts\."),
        ({"length": 0}, r"^length is 0: give a whole number above 0\."),
        ({"most": 0}, r"^texts is 0: give a whole number above 0\."),
        ({"length": 3000}, r"^length is 3000, and the network was trained on 2048: give at most that\."),
    ],
)
def test_texts_that_cannot_be(tmp_path: Path, options: dict[str, int], message: str) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time")
    with pytest.raises(UserError, match=message):
        cut_texts(tmp_path / "a.txt", TOKENIZER, network().config, **{"length": 3, "most": 1} | options)
    with pytest.raises(UserError, match=r"^the model has no tokenizer"):
        cut_texts(tmp_path / "a.txt", None, network().config, length=3, most=1)
