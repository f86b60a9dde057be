"""A conversation on the terminal: messages, and lines that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from anyorder.api.chat import Conversation
from anyorder.cli._console import PlainConsole
from anyorder.cli._prompts import read_line
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.modes import resolve
from anyorder.utils.files import whole_file
from anyorder.utils.json_text import json_text

HELP = """\
/reset           begin a new conversation
/system TEXT     set the system message, and begin anew; without a text, have none
/order NAME      write the next answers in this order
/regenerate      answer the last message again
/save FILE       write the conversation as JSON
/load FILE       go on with a conversation that was saved
/help            show this list
/quit            end, as Ctrl-D does; Ctrl-C stops an answer"""


def check_order(order: str | None, model: Llama) -> None:
    """Refuse an order that the network cannot write."""
    resolve(order, model.config)


def converse(talk: Conversation, notes: PlainConsole) -> None:
    """Answer message after message until the input ends."""
    while True:
        try:
            line = read_line()
        except KeyboardInterrupt:  # a line that was begun is dropped
            print(file=sys.stderr)
            continue
        if line is None:
            return
        try:
            if not line.strip():
                continue
            if not line.startswith("/"):
                _print(talk, talk.ask(line), notes)
            elif _obey(talk, line, notes):
                return
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            notes.print(f"error: {error}", soft_wrap=True)


def _obey(talk: Conversation, line: str, notes: PlainConsole) -> bool:
    """Carry out a line that begins with a slash; return whether it ends the conversation."""
    name, _, rest = line[1:].strip().partition(" ")
    rest = rest.strip()
    match name:
        case "quit" | "exit":
            return True
        case "help":
            notes.print(HELP)
        case "reset":
            talk.messages.clear()
        case "system":
            talk.messages.clear()
            talk.system = rest or None
        case "order":
            check_order(rest or None, talk.model)
            talk.order = rest or None
        case "regenerate":
            _print(talk, talk.regenerate(), notes)
        case "save":
            _save(talk, _file(name, rest))
            notes.print(f"{len(talk.whole)} messages are in {rest}", soft_wrap=True)
        case "load":
            talk.whole = _load(_file(name, rest))
            notes.print(f"{len(talk.whole)} messages are read from {rest}", soft_wrap=True)
        case _:
            raise UserError(
                f"/{name} is unknown: /help lists what there is; begin a message that starts so with a space."
            )
    return False


def _file(name: str, rest: str) -> Path:
    if not rest:
        raise UserError(f"/{name} needs the name of a file, such as /{name} talk.json.")
    return Path(rest).expanduser()


def _print(talk: Conversation, pieces: Generator[str, None, None], notes: PlainConsole) -> None:
    """Print an answer while it is written; Ctrl-C ends the answer, and not the conversation."""
    if talk.dropped:
        notes.print(f"the oldest {talk.dropped} messages do not fit any more and are left out", style="dim")
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print()
        notes.print("stopped", style="dim")
        return
    print()
    assert talk.last is not None
    notes.print(talk.last.output.trace.summary(), style="dim", soft_wrap=True)


def _save(talk: Conversation, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(json_text({"messages": talk.whole}) + "\n", encoding="utf-8")


def _load(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not JSON ({error}): give a file of /save.") from error
    return content["messages"] if isinstance(content, dict) and "messages" in content else content
