"""Texts that every machine has, and rows of tokens made of texts."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from anyorder.errors import UserError


def python_texts(source_bytes: int) -> list[str]:
    """Return Python's own documentation, and sources of its standard library; the same at every call.

    Args:
        source_bytes: about how much source code to take, in bytes; the documentation, half a
            megabyte, always comes whole.

    Returns:
        The topics of `help()` in order of name, then whole modules in order of name.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    for module in modules:
        if source_bytes <= 0:
            break
        text = module.read_text(encoding="utf-8", errors="ignore")
        texts.append(text)
        source_bytes -= len(text.encode())
    return texts


def pack(documents: Iterable[Sequence[int]], length: int, end_token_id: int) -> Tensor:
    """Return documents, each closed by the end token, laid end to end and cut into rows.

    Args:
        documents: token ids of each.
        length: tokens in a row.
        end_token_id: written after each document.

    Returns:
        int64 `[rows, length]`; the tokens that do not fill a last row are left out.

    Raises:
        UserError: the documents do not fill one row.
    """
    stream = [token for document in documents for token in (*document, end_token_id)]
    rows = len(stream) // length
    if rows == 0:
        raise UserError(f"the texts have {len(stream)} tokens: give at least {length}, the length of one row.")
    return torch.tensor(stream[: rows * length], dtype=torch.int64).view(rows, length)
