"""The help of commands, as a person reads it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest

from anyorder.cli import _parser, command_names, command_of, main
from anyorder.cli._groups import FEW, REFUSED
from anyorder.cli._help import Entry
from anyorder.errors import UserError
from anyorder.training.settings import Run

PYTHONS = re.compile(r"Literal\[|Optional|<class|\bnull\b|\bNone\b|\btype:|list\[|default: \[\]|default: False")


def help_of(capsys: pytest.CaptureFixture[str], name: str) -> str:
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", command_names())
def test_every_option_is_explained_under_a_heading_and_nothing_is_pythons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys, name)
    assert not PYTHONS.search(text), PYTHONS.search(text)
    assert all(len(line) <= 80 for line in text.splitlines())
    found = re.findall(r"^  (?:--(\w+)|([A-Z][A-Z_]+)\b)", text, re.MULTILINE)
    shown = [option or word.lower() for option, word in found]
    known = {*_parser.known_to(name, command_of(name)), "help"} - {*REFUSED.get(name, ())}
    assert sorted(shown) == sorted(known)  # each of them once


@pytest.mark.parametrize("name", command_names())
def test_every_option_of_many_has_a_heading_that_says_what_it_is_about(name: str) -> None:
    options = {
        name for name, option in _parser.known_to(name, command_of(name)).items() if option.kind is option.KEYWORD_ONLY
    } - {"config", "print_config"}
    named = [option for names in _parser.headings_of(name).values() for option in names]
    assert len(named) == len(set(named))
    assert len(options - {"force"}) <= FEW or options <= set(named), options - set(named)


def test_fine_tuning_lists_what_it_takes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(capsys, "sft").split())
    assert text.startswith("usage: anyorder sft --data PATH --output PATH --init NAME [options]")
    assert "--init NAME Checkpoint to start from: a folder, a file or a hub id. Must be given." in text
    given: dict[str, Any] = {"shape": Path("c.json"), "random_length_prob": 0.5}
    for name in REFUSED["sft"]:
        with pytest.raises(UserError, match=f"^{name} is"):
            Run(data=Path("d"), output=Path("o"), init="n", **{name: given.get(name, 8)}).completed(tuning=True)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, "N"), (int | None, "N"), (float, "X"), (bool, ""), (Path | None, "PATH"), (str, "NAME"),
        (str | int, "NAME"), (list[int], "N,..."), (Literal["a", "b"] | None, "{a|b}"),
        (Literal["a" * 30, "b" * 30], "KIND"),
    ],
)  # fmt: skip
def test_what_stands_for_a_value(hint: object, value: str) -> None:
    assert Entry("kind", False, hint, None, "x").value == value


def test_long_choices_are_told_in_the_explanation() -> None:
    entry = Entry("kind", False, Literal["a" * 30, "b" * 30], None, "What it is.")
    assert entry.explanation == f"What it is. One of {'a' * 30}, {'b' * 30}."


def test_help_wins_over_what_is_wrong_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["generate", "--nonsense", "-h"])
    assert exit_.value.code == 0
    assert "--max_new_tokens N" in capsys.readouterr().out


def test_words_behind_two_dashes_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "missing-model", "--", "--help"]) == 2
    assert "'missing-model' is no folder or file here" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["help"], ["help", "generate"], ["help", "data", "convert"], ["help", "fuse"]])
def test_help_may_stand_in_front(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with suppress(SystemExit):
        assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['anyorder', *words[1:]])}")


@pytest.mark.parametrize("columns", [1, 40, 51])
def test_narrow_terminals_have_words_in_their_lines(capsys, monkeypatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(capsys, "data tokenizer")
    assert "\n      Number of tokens" in text
    assert all(len(line) < max(columns, 30) for line in text.splitlines())
