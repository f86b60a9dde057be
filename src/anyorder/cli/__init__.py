"""The command line: one file per command, each a typed function `command` whose docstring is its help.

A command that has others below it is a folder, whose `__init__.py` names them in `SUBCOMMANDS`, says in its own
docstring what they are for, and may have a `command` of its own for what is given without one of these names.

Nothing heavy is imported before a command runs, so `--help` answers at once. This holds for
`TYPE_CHECKING` blocks in a command's file too, which jsonargparse executes.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TextIO

from anyorder.cli._parser import one_sentence, parse, typed_names
from anyorder.cli._processes import check_command, only_the_first_prints, print_mistake
from anyorder.cli._signature import Command, values_of
from anyorder.cli._values import check_values
from anyorder.errors import UserError
from anyorder.utils.files import overwriting

COMMANDS = (
    "generate",
    "chat",
    "fuse",
    "serve",
    "pretrain",
    "sft",
    "configs",
    "data",
    "inspect",
    "evaluate",
    "convert",
    "compile",
    "info",
    "bench",
    "evidence",
    "demo",
)

USER_MISTAKE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: words after the program's name; those of the process unless given.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 after Ctrl-C, 143 after SIGTERM in a training, 1 where the
        reader of the output has gone.
    """
    _open_streams()
    with only_the_first_prints() as errors:
        return _exit_code(list(sys.argv[1:] if arguments is None else arguments), errors)


def _exit_code(words: list[str], errors: TextIO) -> int:
    try:
        _run(words)
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted.", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)  # as shells count
    except BrokenPipeError:
        # The reader (`| head`) has gone; a second message, when Python flushes at exit, would not help.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        print_mistake(one_sentence(error), errors)
        return USER_MISTAKE
    return 0


def _open_streams() -> None:
    """Open closed streams (`<&-` in a shell), which Python has as None, so that reading and writing do nothing."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (open as long as the process runs)


def _run(words: list[str]) -> None:
    match words:
        case [] | ["-h" | "--help", *_]:
            print(_overview("anyorder", COMMANDS))
        case ["--version", *_]:
            print(f"anyorder {version('anyorder')}")
        case ["help", *rest]:
            _run([*rest, "--help"])
        case [name, *rest] if name in COMMANDS:
            _run_command(name, rest)
        case [name, *_] if name.startswith("-"):
            raise UserError(f"option {name} is unknown: give a command, --help or --version.")
        case [name, *_]:
            raise UserError(_unknown(f"command {name!r}", name, COMMANDS))


def _run_command(name: str, words: list[str]) -> None:
    """Run a command, or one of its sub-commands: `anyorder data convert` is `cli/data/convert.py`."""
    module = _module(name)
    below: tuple[str, ...] = getattr(module, "SUBCOMMANDS", ())
    match words:
        case [sub, *rest] if sub in below:
            _run_command(f"{name} {sub}", rest)
        case _ if hasattr(module, "command"):
            call = parse(name, module.command, words, below)
            check_command(name)
            with typed_names(name, module.command), overwriting(call.force):
                check_values(name, values_of(call.arguments))
                module.command(**call.arguments)
        case [] | ["-h" | "--help", *_]:
            print(_overview(f"anyorder {name}", below, module.__doc__))
        case [word, *_]:
            raise UserError(_unknown(f"command '{name} {word}'", word, below))


ELSEWHERE = {
    "finetune": "sft", "fine-tune": "sft", "tune": "sft", "eval": "evaluate", "run": "generate",
    "complete": "generate", "write": "generate", "infill": "generate", "export": "convert",
    "show": "info", "likelihood": "evaluate likelihood",
    "tokenizer": "data tokenizer", "replay": "inspect replay",
}  # fmt: skip
"""What commands are called elsewhere."""


def _unknown(called: str, word: str, known: Sequence[str]) -> str:
    other = ELSEWHERE.get(word.lower()) if known is COMMANDS else None
    meant = other or next(iter(get_close_matches(word, known, n=1, cutoff=0.7)), "")
    return f"{called} is unknown: {f'did you mean {meant}? If not, ' if meant else ''}use one of {', '.join(known)}."


def command_names() -> tuple[str, ...]:
    """Return the names of all commands, such as "info" and "data convert"."""
    names: list[str] = []
    for name in COMMANDS:
        module = _module(name)
        names += [name] if hasattr(module, "command") else []
        names += [f"{name} {sub}" for sub in getattr(module, "SUBCOMMANDS", ())]
    return tuple(names)


def command_of(name: str) -> Command:
    """Return the function of a command."""
    command: Command = _module(name).command
    return command


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"anyorder.cli.{name.replace(' ', '.')}")


def _overview(program: str, names: Sequence[str], about: str | None = None) -> str:
    above = program.removeprefix("anyorder").strip()
    modules = [_module(f"{above} {name}".strip()) for name in names]
    helps = [getattr(module, "command", module).__doc__ or "" for module in modules]
    width = max(map(len, names))
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            (about or "One Llama-family network that reads and writes text in any order.").strip(),
            "",
            *[f"  {name:{width}}  {text.splitlines()[0]}" for name, text in zip(names, helps, strict=True)],
            "",
            f"`{program} COMMAND --help` explains a command.",
        ]
    )
