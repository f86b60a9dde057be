"""Texts, tokenizers made from them, and rows of tokens to train on."""

from anyorder.data.text import pack, python_texts
from anyorder.data.tokenizer import train_tokenizer

__all__ = ["pack", "python_texts", "train_tokenizer"]
