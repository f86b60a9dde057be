"""`anyorder data convert`."""

from __future__ import annotations

from typing import Literal


def command(
    source: str,
    target: str,
    *,
    form: Literal["any", "sharegpt", "alpaca"] = "any",
    skip_bad_lines: bool = False,
) -> None:
    """Turn ShareGPT, Alpaca and other dialogues into lines of `messages`.

    Args:
        source: File of JSON or of a table, or folder of such files.
        target: New file whose name ends in .jsonl; it appears whole or not at all.
        form: What the source must be; any finds out line by line.
        skip_bad_lines: Leave out lines that cannot be used, and list them, instead of ending with the first.
    """
    from anyorder.cli._console import PlainConsole
    from anyorder.data.convert import convert_dialogues
    from anyorder.data.records import BadLines, not_read

    notes = PlainConsole(stderr=True)
    name = {"any": None, "sharegpt": "ShareGPT", "alpaca": "Alpaca"}[form]
    with notes.status(f"converting {source}"):
        result = convert_dialogues(source, target, form=name, skip_bad_lines=skip_bad_lines)
    if result.left_out:
        notes.print(BadLines(found=result.left_out).summary(), soft_wrap=True)
    for line in not_read(result.passed_over, result.unread):
        notes.print(line, soft_wrap=True)
    notes.print(f"wrote {result.dialogues} dialogues to {target}", soft_wrap=True)
