"""Orders by name, and the modes that they ask for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anyorder import DiffusionSampler
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.modes import ANY_ORDER, KINDS, LEFT_TO_RIGHT, Mode, blocks, diffusion, find_mode
from anyorder.modes import resolve
from anyorder.orders.by_name import CLASSES, order_named
from anyorder.orders.kinds import LeftToRight, MostConfident, Random
from anyorder.orders.names import MIXTURE, NAMES, objective_named, objectives, order_names, read_order
from anyorder.utils.annotations import shown
from tests.model.networks import network

ALL = (LEFT_TO_RIGHT, ANY_ORDER, diffusion(3), blocks(3, 4))


def config(default: str = "left-to-right") -> ModelConfig:
    return network(modes=ALL, default_mode=default).config


@pytest.mark.parametrize("name", NAMES)
def test_orders_have_names(name: str) -> None:
    order, field = CLASSES[name], NAMES[name]
    assert order_named(name) == order()
    assert resolve(name, config()) == (ANY_ORDER, order())
    if field is not None:
        assert order_named(f"{name}:3") == order(**{field: 3})


def test_every_way_is_asked_for_by_its_name() -> None:
    assert all(read_order(name).mode == name for name in KINDS)
    assert {read_order(name).mode for name in order_names()} == set(KINDS)
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
    message = f"order is {shown(words)}: give one of {known}, where :N, a number above 0, may be left out."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        resolve(words, config())
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        order_named(words)


def test_names_of_other_ways_are_no_order_of_places() -> None:
    with pytest.raises(UserError, match=r"^order is 'blocks:8', which is of another mode than any-order: give one of"):
        order_named("blocks:8")


@pytest.mark.parametrize("default", ["diffusion", "blocks"])
@pytest.mark.parametrize(
    ("order", "mode"),
    [
        ("left-to-right", LEFT_TO_RIGHT),
        ("diffusion", diffusion(3)),
        ("blocks", blocks(3, 4)),
        ("blocks:8", blocks(3, 4)),
        (DiffusionSampler(mode="diffusion"), diffusion(3)),
        (DiffusionSampler(mode="blocks"), blocks(3, 4)),
        (Random(), ANY_ORDER),
        (MostConfident(), ANY_ORDER),
        (Speculative(order=LeftToRight()), ANY_ORDER),
    ],
)
def test_an_order_keeps_its_way_whatever_the_default_is(order: Any, mode: Any, default: str) -> None:
    assert resolve(order, config(default)) == (mode, order)


@pytest.mark.parametrize("default", ["left-to-right", "any-order", "diffusion", "blocks"])
def test_without_an_order_the_default_writes(default: str) -> None:
    mode, order = resolve(None, config(default))
    assert mode.name == default
    assert order == (LeftToRight() if default == "any-order" else default)


def test_a_sampler_that_names_no_way_takes_the_default_or_the_one_that_diffuses() -> None:
    sampler = DiffusionSampler()
    assert resolve(sampler, config("blocks"))[0].name == "blocks"
    assert resolve(sampler, config("left-to-right"))[0].name == "diffusion"
    assert resolve(sampler, network(modes=(LEFT_TO_RIGHT, blocks(3, 4))).config)[0].name == "blocks"
    with pytest.raises(UserError, match=r"^mode of the sampler is 'any-order': choose one of None, diffusion, blocks"):
        DiffusionSampler(mode="any-order")
    with pytest.raises(UserError, match=r"not by 'blocks': train it for that"):
        resolve(DiffusionSampler(mode="blocks"), network(modes=(diffusion(3),)).config)


# ------------------------------------------------------------------------------------------------ other names


@pytest.mark.parametrize("mode", KINDS)
def test_every_name_of_a_way_is_understood_wherever_one_is_given(mode: str) -> None:
    for name in KINDS[mode].names:
        for words in (name, name.upper(), name.replace("-", "_"), f" {name} ".replace("-", " ")):
            assert read_order(words).mode == mode
            assert objective_named(words) == (KINDS[mode].objective, None)
            assert find_mode(ALL, words).name == mode
            assert resolve(words, config())[0].name == mode
            assert config(words).default_mode == mode
            assert Mode(name=words, shifted=False, mask_token_id=3, block_length=4).name == mode


def test_no_name_stands_for_two_things() -> None:
    everything = [name for kind in KINDS.values() for name in kind.names]
    assert len(set(everything)) == len(everything)
    assert {*NAMES, MIXTURE} & set(everything) == {"any-order"}
    assert {kind.objective for kind in KINDS.values()} == set(objectives())
    assert list(CLASSES) == list(NAMES)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("random", ("permutation", None)), ("blocks:32", ("block-diffusion", 32)), ("bd3lm:8", ("block-diffusion", 8)),
        ("Mixture", ("mixture", None)),
    ],
)  # fmt: skip
def test_objectives_by_the_order_that_they_teach(words: str, named: tuple[str, int | None]) -> None:
    assert objective_named(words) == named


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("groups:4", "is 'groups:4', one order of those in which a network of permutation writes: give permutation."),
        ("right-to-left", "'right-to-left', one order of those in which a network of permutation writes: give perm"),
        ("mask-diffusion", "is 'mask-diffusion': did you mean masked-diffusion? If not, give one of autoregressive, "),
        ("elbo", "is 'elbo': give one of autoregressive, permutation, masked-diffusion, block-diffusion, mixture."),
    ],
)
def test_what_no_objective_is_called(words: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        objective_named(words)


def test_a_misspelt_order_is_led_to_the_right_one() -> None:
    with pytest.raises(UserError, match=r"^order is 'left-to-rigth': did you mean left-to-right\?"):
        read_order("left-to-rigth")


def test_a_sampler_takes_the_names_of_ways() -> None:
    assert DiffusionSampler(mode="block_diffusion").mode == "blocks"


def test_names_need_no_torch() -> None:
    code = "import sys, anyorder.orders.names, anyorder.training.settings\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_guide_lists_every_name() -> None:
    guide = Path(__file__).parents[2] / "docs" / "coming-from.md"
    rows = re.findall(r"^  \| `([\w-]+)` \| (.*) \|$", guide.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {mode: (mode, *re.findall(r"`([\w-]+)`", others)) for mode, others in rows}
    assert listed == {kind.name: kind.names for kind in KINDS.values()}
