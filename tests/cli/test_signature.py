"""Parameters of commands, of which some are records of options."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import pytest

from anyorder.cli import _parser, _signature, command_names, command_of
from anyorder.cli._options import OptionGroup
from anyorder.errors import UserError

MOST = 12
"""Parameters of a command at most."""

OTHERS = {"data paraphrase"}


@dataclass(frozen=True, kw_only=True)
class Colours(OptionGroup):
    """How it is painted.

    Attributes:
        shade: Of the wall.
        tones: Of the roof.
    """

    shade: float = 0.5
    tones: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Paint(Colours):
    """The same, by whom.

    Attributes:
        painter: Who paints.
    """

    painter: str | None = None


def command(house: str, *, paint: Paint, floors: int = 1) -> None:
    """Paint a house.

    Args:
        house: Which one.
        paint: how.
        floors: How many.
    """


def test_fields_are_options_in_the_place_of_their_record() -> None:
    assert list(_signature.parameters_of(command)) == ["house", "shade", "tones", "painter", "floors"]
    assert list(_signature.options_of(command)) == ["shade", "tones", "painter", "floors"]
    assert _signature.hints_of(command)["tones"] == list[str]
    explained = _signature.explanations(command)
    assert (explained["shade"], explained["painter"]) == ("Of the wall.", "Who paints.")


def test_records_are_made_of_options() -> None:
    words = ["home", "--shade", "1", "--tones", "red", "--tones", "blue", "--floors", "2"]
    arguments = _parser.parse("paint", command, words).arguments
    assert arguments == {"house": "home", "paint": Paint(shade=1.0, tones=["red", "blue"]), "floors": 2}
    assert _signature.values_of(arguments) == {
        "house": "home", "shade": 1.0, "tones": ["red", "blue"], "painter": None, "floors": 2,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^--shade is 'dark': give a number\.$"):
        _parser.parse("paint", command, ["home", "--shade", "dark"])


@pytest.mark.parametrize("name", command_names())
def test_commands_have_few_parameters_and_no_option_twice(name: str) -> None:
    parameters = inspect.signature(command_of(name)).parameters
    assert len(parameters) <= MOST or name in OTHERS
    records = _signature._groups(command_of(name)).values()
    count = len(parameters) - len(records) + sum(len(inspect.signature(record).parameters) for record in records)
    assert count == len(_signature.parameters_of(command_of(name)))
