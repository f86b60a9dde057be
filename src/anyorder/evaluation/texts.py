"""Texts of equal length to measure likelihoods on, and orders by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.checkpoints.tokenizer.encoding import plain_tokens
from anyorder.errors import UserError
from anyorder.modes import Order, resolve
from anyorder.orders.kinds import MostConfident
from anyorder.orders.names import read_order
from anyorder.utils.numbers import check_positive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.config import ModelConfig


USUAL = ("left-to-right", "any-order", "right-to-left", "random", "groups:4", "diffusion", "blocks")
"""Orders that are compared by default, as far as a model has their modes."""


def cut_texts(
    data: Path, tokenizer: PreTrainedTokenizerBase | None, config: ModelConfig, *, length: int, most: int
) -> list[list[int]]:
    """Return token ids of texts of `length` tokens each, from the beginning of the data.

    What is left of a document is not used. Each text begins with the token that begins one, if the network has it.

    Raises:
        UserError: there is no tokenizer, the data are shorter than one text, or a number cannot be.
    """
    from anyorder.data import read_texts  # here, because it takes a while to import

    for name, value in (("length", length), ("texts", most)):
        check_positive(name, value)
    if tokenizer is None:
        raise UserError("the model has no tokenizer: give it with --tokenizer.")
    if length > config.context_length:
        raise UserError(
            f"length is {length}, and the network was trained on {config.context_length}: give at most that."
        )
    begin = [] if config.bos_token_id is None else [config.bos_token_id]
    size = length - len(begin)
    texts: list[list[int]] = []
    for text in read_texts(data):
        ids = plain_tokens(tokenizer, text)
        if begin and ids[:1] == begin:  # written out
            del ids[0]
        starts = range(0, len(ids) - size + 1, max(size, 1))
        texts += [[*begin, *ids[start : start + size]] for start in starts[: most - len(texts)]]
        if len(texts) == most:
            break
    if not texts:
        raise UserError(f"no text in {str(data)!r} has {length} tokens: give a smaller length, or longer texts.")
    return texts


def gap_marks(length: int, gap: int | None) -> list[bool]:
    """Return which tokens of a text are given: the first, or all but `gap` of them in the middle.

    Raises:
        UserError: a gap of so many tokens leaves nothing before or behind it.
    """
    if gap is None:
        return [at == 0 for at in range(length)]
    if not 0 < gap <= length - 2:
        raise UserError(f"gap is {gap} in texts of {length} tokens: give a number from 1 to {length - 2}.")
    start = max(1, (length - gap) // 2)
    return [not start <= at < start + gap for at in range(length)]


def orders_by_name(names: Sequence[str], config: ModelConfig) -> dict[str, Order]:
    """Return orders for `by_likelihood`, by name; those that suit the model unless given.

    Raises:
        UserError: a name is that of no order, for one that the network was not trained for, or for one that is not
            known before it is taken.
    """
    if not names:
        has = [mode.name for mode in config.modes]
        names = [name for name in USUAL if read_order(name).mode in has]
        names += [name for name in has if name not in {read_order(usual).mode for usual in USUAL}]
    found: dict[str, Order] = {}
    for name in names:
        _, order = resolve(name, config)
        if isinstance(order, MostConfident):
            raise UserError(f"order is {name!r}, which depends on what is written: a given text has no such order.")
        found[name] = order
    return found
