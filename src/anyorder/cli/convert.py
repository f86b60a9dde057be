"""`anyorder convert`."""

from __future__ import annotations

from pathlib import Path


def command(source: str, target: str, *, tokenizer: Path | None = None, dtype: str = "auto") -> None:
    """Turn a llama2.c file into a Hugging Face folder, or back.

    Args:
        source: Checkpoint to read: a Hugging Face folder or a llama2.c file.
        target: New folder, or new file whose name ends in .bin for llama2.c; written whole or not at all.
        tokenizer: Tokenizer to put into the folder: a folder, a llama2.c tokenizer file or a SentencePiece model.
        dtype: Of the written weights: auto (as stored), float32, bfloat16, float16 or float64.
    """
    from rich.console import Console

    import anyorder

    notes = Console(stderr=True, highlight=False)
    with notes.status(f"converting {source}"):
        anyorder.convert(source, target, tokenizer=tokenizer, dtype=dtype)
    notes.print(f"wrote {target}", soft_wrap=True)
