"""The command line: one file per command, each a typed function `command` whose docstring is its help.

Nothing heavy is imported before a command runs, so `--help` answers at once. This holds for
`TYPE_CHECKING` blocks in a command's file too, which jsonargparse executes.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from anyorder.cli._parser import one_sentence, parse
from anyorder.errors import UserError

COMMANDS = ("generate", "convert", "info", "bench", "demo")

USER_MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: words after the program's name; those of the process unless given.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 after Ctrl-C, 1 where the reader of the output has gone.
    """
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("\ninterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; a second complaint, when Python flushes at exit, helps nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        return USER_MISTAKE
    return 0


def _run(words: list[str]) -> None:
    match words:
        case [] | ["-h" | "--help", *_]:
            print(_overview())
        case ["--version", *_]:
            print(f"anyorder {version('anyorder')}")
        case [name, *rest] if name in COMMANDS:
            command = _command(name)
            command(**parse(name, command, rest))
        case [name, *_]:
            raise UserError(f"command {name!r} is unknown: use one of {', '.join(COMMANDS)}.")


def _command(name: str) -> Callable[..., None]:
    command: Callable[..., None] = importlib.import_module(f"anyorder.cli.{name}").command
    return command


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {(_command(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: anyorder COMMAND ...",
            "",
            "One Llama-family network that reads and writes text in any order.",
            "",
            *lines,
            "",
            "`anyorder COMMAND --help` explains a command.",
        ]
    )
