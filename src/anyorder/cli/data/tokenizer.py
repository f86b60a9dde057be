"""`anyorder data tokenizer`."""

from __future__ import annotations


def command(source: str, target: str, *, vocab_size: int = 8000, mask: bool = False) -> None:
    """Train a tokenizer from texts: byte pairs, which can write any text.

    Args:
        source: File of text, JSON or a table, or folder of such files.
        target: New folder; it appears whole or not at all.
        vocab_size: Number of tokens at most.
        mask: Give it a mask token, for writing by diffusion.
    """
    from pathlib import Path

    from anyorder.checkpoints import save_tokenizer
    from anyorder.cli._console import PlainConsole
    from anyorder.data import read_texts, train_tokenizer
    from anyorder.data.tokenizer import MASK
    from anyorder.utils.files import check_place

    notes = PlainConsole(stderr=True)
    check_place(Path(target), folder=True)  # before minutes are spent
    with notes.status(f"reading {source}"):
        tokenizer = train_tokenizer(read_texts(source), vocab_size, mask_token=MASK if mask else None)
        save_tokenizer(tokenizer, target)
    notes.print(f"wrote {target}: {len(tokenizer)} tokens", soft_wrap=True)
