"""Orders by name, and the ways of writing that they ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from anyorder import DiffusionSampler
from anyorder.api.dispatch import resolve
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.orders.kinds import LeftToRight, MostConfident, Random
from anyorder.orders.names import NAMES, WAY_OF_ORDER, order_named, read_order
from anyorder.ways import ANY_ORDER, LEFT_TO_RIGHT, TRAINED_BY, blocks, diffusion
from tests.model.networks import network

ALL = (LEFT_TO_RIGHT, ANY_ORDER, diffusion(3), blocks(3, 4))


def config(default: str = "left-to-right") -> ModelConfig:
    return network(ways=ALL, default_way=default).config


@pytest.mark.parametrize("name", NAMES)
def test_orders_have_names(name: str) -> None:
    order, field = NAMES[name]
    assert order_named(name) == order()
    assert resolve(name, config()) == (ANY_ORDER, order())
    if field is not None:
        assert order_named(f"{name}:3") == order(**{field: 3})


def test_every_way_is_asked_for_by_its_name() -> None:
    assert {WAY_OF_ORDER[name] for name in TRAINED_BY} == set(TRAINED_BY)
    assert read_order("blocks:32") == ("blocks", 32)
    assert read_order("blocks").number is None


@pytest.mark.parametrize(
    "words",
    ["sideways", "", "groups:", "groups:two", "groups:-1", "groups:0", "halves:2", "any-order:2", "left-to-right:2",
     "diffusion:8", "blocks:x", 4, LEFT_TO_RIGHT],
)  # fmt: skip
def test_what_no_order_is_called(words: Any) -> None:
    known = (
        "left-to-right, any-order, groups:N, right-to-left:N, random:N, halves, spaced:N, spans:N, confidence:N, "
        "diffusion, blocks:N"
    )
    message = f"order is {words!r}: give one of {known}, where :N, a number above 0, may be left out."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        resolve(words, config())
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        order_named(words)


def test_names_of_other_ways_are_no_order_of_places() -> None:
    with pytest.raises(UserError, match=r"^order is 'blocks:8', which is of another way than any-order: give one of"):
        order_named("blocks:8")


@pytest.mark.parametrize("default", ["diffusion", "blocks"])
@pytest.mark.parametrize(
    ("order", "way"),
    [
        ("left-to-right", LEFT_TO_RIGHT),
        ("diffusion", diffusion(3)),
        ("blocks", blocks(3, 4)),
        ("blocks:8", blocks(3, 4)),
        (DiffusionSampler(way="diffusion"), diffusion(3)),
        (DiffusionSampler(way="blocks"), blocks(3, 4)),
        (Random(), ANY_ORDER),
        (MostConfident(), ANY_ORDER),
        (Speculative(order=LeftToRight()), ANY_ORDER),
    ],
)
def test_an_order_keeps_its_way_whatever_the_default_is(order: Any, way: Any, default: str) -> None:
    assert resolve(order, config(default)) == (way, order)


@pytest.mark.parametrize("default", ["left-to-right", "any-order", "diffusion", "blocks"])
def test_without_an_order_the_default_writes(default: str) -> None:
    way, order = resolve(None, config(default))
    assert way.name == default
    assert order == (LeftToRight() if default == "any-order" else default)


def test_a_sampler_that_names_no_way_takes_the_default_or_the_one_that_diffuses() -> None:
    sampler = DiffusionSampler()
    assert resolve(sampler, config("blocks"))[0].name == "blocks"
    assert resolve(sampler, config("left-to-right"))[0].name == "diffusion"
    assert resolve(sampler, network(ways=(LEFT_TO_RIGHT, blocks(3, 4))).config)[0].name == "blocks"
    with pytest.raises(UserError, match=r"^way of the sampler is 'any-order': choose one of None, diffusion, blocks"):
        DiffusionSampler(way="any-order")
    with pytest.raises(UserError, match=r"not by 'blocks': train it for that"):
        resolve(DiffusionSampler(way="blocks"), network(ways=(diffusion(3),)).config)
