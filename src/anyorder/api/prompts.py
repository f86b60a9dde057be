"""Prompts, in whatever form they are given, as token ids or canvases, each with its mode and its order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from torch import Tensor

from anyorder.api.prompt_forms import plain_prompt
from anyorder.api.text import GAP, GAPS
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens, prompt_tokens
from anyorder.decoding.canvas import BLANK, check_canvases, continuation
from anyorder.decoding.checks import check_prompts
from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.modes import ENTRIES, Order, resolve
from anyorder.orders.names import read_order
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import check_positive, is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.api.images import Images
    from anyorder.model.config import ModelConfig

Messages = Sequence[Mapping[str, Any]]
"""A dialogue, as `apply_chat_template` takes it: each message has a role and a content."""

Prompt = (
    str
    | Sequence[str]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | Tensor
    | npt.NDArray[Any]
    | Messages
    | Sequence[Messages]
    | Mapping[str, Any]
)


class TextEncoder:
    """Makes token ids of text, for prompts and phrasings alike; token ids stay as they are.

    Args:
        tokenizer: None refuses all text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer

    def beginning(self, part: str | Sequence[int]) -> list[int]:
        """Encode a text that is to be continued.

        Raises:
            UserError: there is no tokenizer, or the text is no Unicode.
        """
        return prompt_tokens(self._needed_for(part), part) if isinstance(part, str) else list(part)

    def continuing(self, part: str | Sequence[int]) -> list[int]:
        """Encode a text that goes on; an empty one needs no tokenizer.

        Raises:
            UserError: see `beginning`.
        """
        if not isinstance(part, str):
            return list(part)
        return continuing_tokens(self._needed_for(part), part) if part else []

    def _needed_for(self, text: str) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            raise UserError(f"{shown(text)} is text and tokenizer is None: give the tokenizer, or token ids.")
        if any("\udc80" <= character <= "\udcff" for character in text):  # how Python keeps bytes of a command line
            raise UserError(f"the text {shown(text)} has bytes that are not UTF-8: convert it to UTF-8.")
        return self._tokenizer


def prompt_ids(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, bos_token_id: int | None
) -> tuple[list[list[int]], bool]:
    """Return the token ids of each prompt, and whether a single prompt was given, not a list of them.

    Args:
        prompt: a string, token ids, or a list of such, which may be mixed; a tensor `[prompts, tokens]`; also in the
            forms of `plain_prompt`.
        tokenizer: may be None where the prompts are token ids.
        bos_token_id: the token that an empty text becomes, if there is one.

    Raises:
        UserError: the prompt is of another kind, is text without a tokenizer, or is empty.
    """
    encoder = TextEncoder(tokenizer)
    return _rows(prompt, tokenizer, lambda text: _begun(encoder.beginning(text), bos_token_id))


def prompts_with_gaps(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, bos_token_id: int | None, *, new_tokens: int,
    gap_tokens: int | None = None,
) -> tuple[list[list[int]], bool]:  # fmt: skip
    """Return the same as `prompt_ids`, with a `BLANK` for each token that is to be written in a gap.

    In text, `[...]` is a gap, and blanks before it belong to it, since tokens begin with their space; in token ids,
    each `BLANK` is a token to be written.

    Args:
        prompt, tokenizer, bos_token_id: as in `prompt_ids`.
        new_tokens: to be written behind a prompt without a gap.
        gap_tokens: to be written in each gap of a text; `new_tokens` unless given.

    Raises:
        UserError: see `prompt_ids`; a number of tokens is not above 0, or no prompt has a gap for `gap_tokens`.
    """
    for name, tokens in (("max_new_tokens", new_tokens), ("gap_tokens", gap_tokens)):
        if tokens is not None:
            check_positive(name, tokens)
    gaps, encoder = 0, TextEncoder(tokenizer)

    def encode(text: str) -> list[int]:
        nonlocal gaps
        first, *others = GAPS.split(text)
        gaps += len(others)
        ids = _begun(encoder.beginning(first.rstrip(" ") if others else first), bos_token_id)
        for number, (gap, part) in enumerate(zip(GAPS.findall(text), others, strict=True), start=1):
            ids += [BLANK] * (gap.count(GAP) * (gap_tokens or new_tokens))
            ids += encoder.continuing(part if number == len(others) else part.rstrip(" "))
        return ids

    rows, single = _rows(prompt, tokenizer, encode)
    if gap_tokens is not None and not gaps:
        raise UserError(f"gap_tokens is {gap_tokens}, but no prompt has a gap: write {GAP} where tokens are missing.")
    return rows, single


def _rows(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, encode: Callable[[str], list[int]]
) -> tuple[list[list[int]], bool]:
    """Return the token ids of each prompt, text by `encode`, and whether a single prompt was given."""
    given: Any = plain_prompt(prompt, tokenizer)
    if isinstance(given, str):
        return [encode(given)], True
    if not isinstance(given, Sequence) or not given:
        raise UserError(
            f"the prompt is {shown(given)}: give a string, token ids, or a list of strings or of token ids."
        )
    if all(map(is_whole, given)):
        return [list(given)], True
    for number, row in enumerate(given):
        if not isinstance(row, str) and not (isinstance(row, Sequence) and all(map(is_whole, row))):
            raise UserError(f"prompt {number} is {shown(row)}: give strings, or lists of whole numbers.")
    return [encode(row) if isinstance(row, str) else list(row) for row in given], False


def _begun(ids: list[int], bos_token_id: int | None) -> list[int]:
    """Return the token ids of a text; of an empty one, the token that begins a text."""
    if not ids and bos_token_id is None:
        raise UserError("the prompt is '' and this network has no token that begins a text: give at least one word.")
    return ids or [bos_token_id or 0]


@dataclass(frozen=True)
class Prompts:
    """Prompts as decoders take them.

    Attributes:
        rows: token ids of each; a canvas, unless its mode is causal.
        modes: the mode of each, and the order in which it is written.
        texts: each as it was given, where that is text.
        single: whether a single prompt was given, not a list of them.
    """

    rows: list[list[int]]
    modes: list[tuple[Mode, Order]]
    texts: list[str | None]
    single: bool


def prompts_for(
    order: Order | None, prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, config: ModelConfig,
    max_new_tokens: int, gap_tokens: int | None = None, images: Images | None = None,
) -> Prompts:  # fmt: skip
    """Read all prompts. Each has the mode of the order, or without one that which suits it, whatever the others are.

    Decoders check their batch themselves. All prompts are checked here as well, so that a mistake in the last batch is
    reported before the first is written.

    Args:
        order, prompt, tokenizer, max_new_tokens, gap_tokens: as in `anyorder.generate`.
        config: of the network.
        images: of the prompts, whose rows are put into them; None where there are none.

    Raises:
        UserError: see `resolve`, `prompts_with_gaps`, `Images.place`, `check_prompts` and `check_canvases`; or a prompt
            has a gap that the order, or the network, does not fill.
    """
    by_order = resolve(order, config)
    rows, single = prompts_with_gaps(
        prompt, tokenizer, config.bos_token_id, new_tokens=max_new_tokens, gap_tokens=gap_tokens
    )
    if images is not None:
        rows = images.place(rows, single)
    gaps = [number for number, row in enumerate(rows) if BLANK in row]
    filling = resolve(_filling_gaps(order, config, f"prompt {gaps[0]}"), config) if gaps else by_order
    modes = [filling if BLANK in row else by_order for row in rows]
    for number, (row, (mode, _)) in enumerate(zip(rows, modes, strict=True)):
        if mode.kind.causal:
            check_prompts(config, [row], [number])
            continue
        if BLANK not in row:
            row[:] = continuation(row, min(max_new_tokens, max(0, config.context_length - len(row))))
        check_canvases(config, [row], [number])
    entries = [prompt] if isinstance(prompt, str) else prompt if isinstance(prompt, list | tuple) else ()
    texts = [entry if isinstance(entry, str) else None for entry in entries]
    return Prompts(rows, modes, texts if len(texts) == len(rows) else [None] * len(rows), single)


def _filling_gaps(order: Order | None, config: ModelConfig, gap_in: str) -> Order:
    """Return the order; unless given, the network's default, if that fills gaps, or else a mode that does."""
    filling = {mode.name for mode in config.modes if not mode.kind.causal}
    fills = [name for name in (config.default_mode, *ENTRIES) if name in filling]
    if not fills:
        raise UserError(
            f"{gap_in} has a gap ({GAP}, or {BLANK} among token ids), and this network writes by "
            f"{config.default_mode!r} alone, which fills none: load a network that writes in any order or by "
            f"diffusion, or give token ids where {GAP} is meant as text."
        )
    if isinstance(order, str) and ENTRIES[read_order(order).mode].kind.causal:
        raise UserError(
            f"order is {order!r}, which fills no gap, and {gap_in} has one ({GAP}, or {BLANK} among token ids): leave "
            f"out the order, or give {fills[0]!r}."
        )
    return fills[0] if order is None else order
