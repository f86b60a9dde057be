"""The command line as a person meets it: help, mistakes, interruptions."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from anyorder import cli
from anyorder.cli import COMMANDS, command_names, main
from anyorder.errors import UserError


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command line that must fail: one line, exit code 2."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_overview_names_every_command(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert all(len(line) <= 80 for line in out.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("anyorder ")


@pytest.mark.parametrize("name", command_names())
def test_help_explains_every_option_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_:
        main([*name.split(), "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert " ".join(out.split()).startswith(f"usage: anyorder {name}")
    assert "--config" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_help_imports_no_torch() -> None:
    code = f"""
import sys
from anyorder.cli import main
for words in {[[], *([*name.split(), "--help"] for name in command_names())]}:
    try:
        main(words)
    except SystemExit:
        pass
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["genrate"],
            f"command 'genrate' is unknown: did you mean generate? If not, use one of {', '.join(COMMANDS)}.",
        ),
        (["generate"], "argument model is missing: see `anyorder generate --help`."),
        (["info", "a", "b"], "word 'b' is one too many: put a text of several words in quotes, or see"),
        (["generate", "m", "p", "--max_new_tokns", "3"], "option --max_new_tokns is unknown: did you mean --max_new_t"),
        (["generate", "m", "p", "--quiet"], "option --quiet is unknown: see `anyorder generate --help`."),
        (["generate", "m", "--prompt", "p"], "option --prompt is unknown: write its value alone, as a word."),
        (["generate", "m", "p", "--top-k", "1.5"], "--top_k is '1.5': give a whole number."),
        (["generate", "m", "p", "--temperature", "hot"], "--temperature is 'hot': give a number."),
        (["generate", "m", "p", "--stop"], "--stop has no value: write one behind it, or see"),
        (
            ["generate", "--config", "missing.yaml"],
            "missing.yaml': no such file, give the path of a YAML",
        ),
        (["generate", "--config"], "--config has no value: write one behind it"),
    ],
)
def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in mistake(capsys, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nnope: 3\n", "option --nope is unknown"),
        ("model: m\nmax_new_tokens: many\n", "--max_new_tokens is 'many': give a whole number."),
        ("model: m\nprompt: p\nstop: 3\n", "--stop has 3: give text, in quotes."),
        ("model: [\n", "is no YAML or JSON in line 2 (expected the node content"),
    ],
)
def test_mistakes_in_a_configuration_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert message in mistake(capsys, "generate", "--config", str(tmp_path / "c.yaml"))


def fails_with(error: BaseException) -> object:
    def command() -> None:
        """Fail.

        Args:
        """
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("field 'a' is 1:\n  give 2."), 2, "error: field 'a' is 1: give 2.\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "error: x cannot be used: Permission denied.\n"),
        (OSError("no space\nleft"), 2, "error: no space left\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted.\n"),
    ],
)
def test_errors_of_a_command(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(importlib.import_module("anyorder.cli.info"), "command", fails_with(error))
    assert main(["info"]) == code
    assert capsys.readouterr().err == message


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("anyorder.cli.info"), "command", fails_with(ValueError("a fault")))
    with pytest.raises(ValueError, match="a fault"):
        main(["info"])


def test_each_command_has_a_file_of_its_own() -> None:
    folder = Path(cli.__file__).parent
    files = {path.relative_to(folder).with_suffix("") for path in folder.rglob("[!_]*.py")}
    assert {file for file in files if file.parts[0] in COMMANDS} == files
    leaves = {Path(*name.split()) for name in command_names()}
    assert {leaf for leaf in leaves if not (folder / leaf).is_dir()} == files


def test_commands_below_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = tmp_path / "zoo"
    group.mkdir()
    (group / "__init__.py").write_text('"""Animals."""\n\nSUBCOMMANDS = ("feed",)\n')
    (group / "feed.py").write_text(
        "def command(animals: list[str] = [], *, often: int = 1) -> None:\n"
        '    """Feed them.\n\n    Args:\n        animals: Their names.\n        often: Times.\n    """\n'
        "    print(animals, often)\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.setattr(cli, "COMMANDS", (*COMMANDS, "zoo"))
    assert "zoo feed" in command_names()
    assert main(["zoo"]) == 0
    assert "usage: anyorder zoo COMMAND ...\n\nAnimals.\n\n  feed  Feed them.\n" in capsys.readouterr().out
    assert main(["zoo", "feed", "lion", "ape", "--often", "2"]) == 0
    assert capsys.readouterr().out == "['lion', 'ape'] 2\n"
    assert (
        mistake(capsys, "zoo", "free") == "command 'zoo free' is unknown: did you mean feed? If not, use one of feed."
    )
    assert main(["zoo", "feed"]) == 0
