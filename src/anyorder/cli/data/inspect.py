"""`anyorder data inspect`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.cli._console import PlainConsole

ANSWER = ("⟦", "⟧")
"""What surrounds a text that is trained on; it is printed in green as well where the terminal has colours."""

SHOWN = 320
"""Characters of a part that are shown: the first and the last of a longer one."""

BAR = 40
"""Width of the longest bar, in characters."""


def command(
    source: str,
    *,
    tokenizer: str | None = None,
    length: int = 1024,
    kind: Literal["pretrain", "sft"] = "pretrain",
    unpacked: bool = False,
    documents: Literal["file", "paragraphs", "lines"] = "file",
    last_answer_only: bool = False,
    template: str | None = None,
    mask_token_id: int | None = None,
    vocab_size: int | None = None,
    examples: int = 2,
) -> None:
    """Show what training would see of data: counts, lengths, examples, and lines that cannot be used.

    Args:
        source: File of JSON, text or a table, or folder of such files.
        tokenizer: Checkpoint, folder or file of the tokenizer; not needed where the data are token ids.
        length: Tokens in a row.
        kind: What is trained on, whole texts (pretrain) or answers (sft).
        unpacked: Give each text a row of its own, instead of laying texts end to end.
        documents: What is one document of a plain text.
        last_answer_only: Of each dialogue, train on the last answer alone (sft).
        template: Chat template, a text in Jinja or a file; the tokenizer's own unless given.
        mask_token_id: Token that may not be in the data; the tokenizer's mask token unless given.
        vocab_size: Number of tokens there are; the tokenizer's unless given.
        examples: Rows to show.
    """
    from anyorder.checkpoints import load_tokenizer
    from anyorder.cli._console import PlainConsole
    from anyorder.data import DataConfig, inspect_data
    from anyorder.data.records import BadLines, not_read

    if examples < 0:
        raise UserError(f"examples is {examples}: give 0 or more.")
    console = PlainConsole()
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    if loaded is None and vocab_size is None:
        raise UserError("tokenizer is missing: give --tokenizer, or for data of token ids --vocab_size.")
    if mask_token_id is None and loaded is not None:
        mask_token_id = loaded.mask_token_id
    config = DataConfig(
        length=length, kind=kind, packed=not unpacked, documents=documents, template=template,
        mask_token_ids=() if mask_token_id is None else (mask_token_id,), vocab_size=vocab_size,
        last_answer_only=last_answer_only,
    )  # fmt: skip
    with PlainConsole(stderr=True).status(f"reading {source}") as status:
        found = inspect_data(
            source,
            loaded,
            config,
            examples=examples,
            progress=lambda records: status.update(f"reading {source}: {records} records"),
        )
    report = found.report
    _print_counts(console, vars(report), length, packed=kind == "pretrain" and not unpacked)
    if found.lengths:
        _print_lengths(console, found.lengths)
    for row in found.rows:
        _print_row(console, loaded, row)
    if report.left_out:
        console.print(f"\n{BadLines(found=report.left_out).summary(20)}", soft_wrap=True)
    for line in not_read(report.passed_over, report.unread, 20):
        console.print(line, soft_wrap=True)


def _print_counts(console: PlainConsole, report: dict[str, Any], length: int, *, packed: bool) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for form, count in report["forms"].items():
        table.add_row("records", f"{count:,} of the form {form}")
    table.add_row("tokens", f"{report['tokens']:,}")
    table.add_row("rows", f"{report['rows']:,} of {'' if packed else 'at most '}{length:,} tokens")
    if report["truncated"]:
        table.add_row("cut", f"{report['truncated']:,} records whose answers are longer than a row")
    if report["bytes_per_token"] is not None:
        table.add_row("text", f"{report['bytes_per_token']:.2f} bytes per token that is trained on")
    if report["left_out"]:
        table.add_row("left out", f"{len(report['left_out']):,} lines, listed below")
    console.print(table)


def _print_lengths(console: PlainConsole, lengths: list[tuple[int, int]]) -> None:
    most, wide = max(count for _, count in lengths), len(f"{lengths[-1][0]:,}")
    console.print("\nrecords by their tokens")
    for tokens, count in lengths:
        bar = "█" * -(-count * BAR // most)
        console.print(f"  up to {tokens:>{wide},}  {bar} {count:,}")


def _print_row(console: PlainConsole, tokenizer: Any, row: dict[str, Any]) -> None:
    from rich.text import Text

    targets = sum(end - begin for begin, end in row["turns"]) if "turns" in row else len(row["input_ids"])
    console.print(f"\nsample {row['sample']}: {len(row['input_ids'])} tokens, {targets} of them trained on")
    for ids, is_target in _parts(row):
        text = " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)
        if len(text) > SHOWN:
            text = f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
        if is_target:
            console.print(Text(text.join(ANSWER), style="green"), end="", soft_wrap=True)
        else:
            console.print(Text(text), end="", soft_wrap=True)
    console.print()


def _parts(row: dict[str, Any]) -> Iterator[tuple[list[int], bool]]:
    """Prompts and answers in turn, or documents."""
    ids = row["input_ids"]
    if "turns" in row:
        at = 0
        for begin, end in row["turns"]:
            yield ids[at:begin], False
            yield ids[begin:end], True
            at = end
        return
    documents = row.get("document", [0])
    begins = [0, *(at for at in range(1, len(documents)) if documents[at] != documents[at - 1]), len(ids)]
    for begin, end in itertools.pairwise(begins):
        yield ids[begin:end], True
