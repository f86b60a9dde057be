"""Texts and dialogues, tokenizers made from them, and rows of tokens to train on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from anyorder.checkpoints.chat_template.render import chat_template
from anyorder.data.collate import collate
from anyorder.data.config import DataConfig
from anyorder.data.readers import read_records, read_texts
from anyorder.data.records import BadLines
from anyorder.data.text import pack, python_texts
from anyorder.data.tokenizer import train_tokenizer
from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.data.convert import convert_alpaca, convert_dialogues, convert_sharegpt
    from anyorder.data.dataset import Report, prepare, report_of
    from anyorder.data.inspect import inspect_data

__all__ = [
    "BadLines",
    "DataConfig",
    "Report",
    "chat_template",
    "collate",
    "convert_alpaca",
    "convert_dialogues",
    "convert_sharegpt",
    "inspect_data",
    "pack",
    "prepare",
    "python_texts",
    "read_records",
    "read_texts",
    "report_of",
    "train_tokenizer",
]

_LATE = {
    "convert_alpaca": "convert",
    "convert_dialogues": "convert",
    "convert_sharegpt": "convert",
    "Report": "dataset",
    "prepare": "dataset",
    "report_of": "dataset",
    "inspect_data": "inspect",
}
"""Names whose modules need optional packages, or take long to import."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"anyorder.data.{_LATE[name]}"), name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"preparing data needs the package {error.name}, which is not installed: pip install 'anyorder[train]'."
        ) from error
