"""Texts and dialogues, tokenizers made from them, and rows of tokens to train on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from anyorder.data.collate import collate
from anyorder.data.readers import read_records
from anyorder.data.records import BadLines
from anyorder.data.text import pack, python_texts
from anyorder.data.tokenizer import train_tokenizer
from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.data.chat import chat_template
    from anyorder.data.dataset import Report, prepare, report_of

__all__ = [
    "BadLines",
    "Report",
    "chat_template",
    "collate",
    "pack",
    "prepare",
    "python_texts",
    "read_records",
    "report_of",
    "train_tokenizer",
]

_LATE = {"chat_template": "chat", "Report": "dataset", "prepare": "dataset", "report_of": "dataset"}
"""Names whose modules need packages that not everybody has, or that take long to import."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"anyorder.data.{_LATE[name]}"), name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"preparing data needs the package {error.name}, which is not installed: pip install 'anyorder[train]'."
        ) from error
