"""Other people's forms of dialogues turned into ours: one `messages` object per line, as OpenAI's and transformers'."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyorder.data.readers import read_records
from anyorder.data.records import BadLines, Dialogue, Message
from anyorder.errors import UserError
from anyorder.utils.files import whole_file


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted.

    Attributes:
        dialogues: number of those written.
        left_out: one sentence for each line that was left out.
        passed_over: files of a folder that were not read, each with the reason.
        unread: fields with text that no form reads, each with the number of records that have it.
    """

    dialogues: int
    left_out: list[str]
    passed_over: list[str]
    unread: dict[str, int]


def convert_sharegpt(source: str | Path, target: str | Path, *, skip_bad_lines: bool = False) -> Conversion:
    """Return ShareGPT's `conversations` as `messages`; see `convert_dialogues`."""
    return convert_dialogues(source, target, form="ShareGPT", skip_bad_lines=skip_bad_lines)


def convert_alpaca(source: str | Path, target: str | Path, *, skip_bad_lines: bool = False) -> Conversion:
    """Return Alpaca's instruction, input and output as `messages`; see `convert_dialogues`."""
    return convert_dialogues(source, target, form="Alpaca", skip_bad_lines=skip_bad_lines)


def convert_dialogues(
    source: str | Path, target: str | Path, *, form: str | None = None, skip_bad_lines: bool = False
) -> Conversion:
    """Return dialogues of any form as lines of `messages`, which train exactly as their source does.

    Args:
        source: file, or folder of files.
        target: new file whose name ends in .jsonl; it appears whole or not at all.
        form: what the source must be, such as "ShareGPT" or "Alpaca"; any form of dialogues unless given.
        skip_bad_lines: whether lines that cannot be used are left out; the first one raises otherwise.

    Raises:
        UserError: there are no data, a line cannot be used or is of another form, or the target cannot be written.
    """
    target = Path(target)
    if target.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UserError(f"target {str(target)!r} is of another kind: give a new file whose name ends in .jsonl.")
    bad_lines, count = BadLines(skip_bad_lines), 0
    with whole_file(target) as partial, partial.open("w", encoding="utf-8") as file:
        for record in read_records(source, bad_lines):
            if not isinstance(record, Dialogue):
                bad_lines.refuse(record.place, f"is no dialogue but {record.form}", "it needs no conversion")
            elif form not in (None, record.form):
                bad_lines.refuse(record.place, f"is of the form {record.form}, not {form}", "name its form, or none")
            else:
                file.write(json.dumps(_fields(record), ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise UserError(f"data {str(source)!r} have no dialogue that can be used; {bad_lines.summary()}")
    return Conversion(
        dialogues=count,
        left_out=bad_lines.found,
        passed_over=bad_lines.passed_over,
        unread=dict(bad_lines.unread),
    )


def _fields(dialogue: Dialogue) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": [_message(message) for message in dialogue.messages]}
    return fields | ({"tools": list(dialogue.tools)} if dialogue.tools else {})


def _message(message: Message) -> dict[str, Any]:
    fields = message.given or {"role": message.role, "content": message.content}
    return {**fields, **({} if message.trained else {"weight": 0})}
