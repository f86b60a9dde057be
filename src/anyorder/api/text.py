"""Between text and token ids: prompts as ids or canvases, and ids as text that grows while it is written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as _short
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from torch import Tensor

from anyorder.api.prompt_forms import plain_prompt
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens, prompt_tokens
from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import check_positive, is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

GAP = "[...]"
"""Stands in the text of a prompt where tokens are to be written."""

GAPS = re.compile(r"\[\.\.\.\](?: *\[\.\.\.\])*")
"""A gap, or several with nothing but blanks between them, which become one."""

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers give for bytes that are no character."""


# ---- text to ids -----------------------------------------------------------------------------------


def prompt_ids(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, bos_token_id: int | None
) -> tuple[list[list[int]], bool]:
    """Token ids of each prompt, and whether a single prompt was given, not a list of them.

    Args:
        prompt: a string, token ids, or a list of such, which may be mixed; a tensor `[prompts, tokens]`; also in the
            forms of `plain_prompt`.
        tokenizer: may be None where the prompts are token ids.
        bos_token_id: the token that stands for an empty text, if there is one.

    Raises:
        UserError: the prompt is of another kind, is text without a tokenizer, or is empty.
    """
    return _rows(prompt, tokenizer, lambda text: _encode(text, tokenizer, bos_token_id))


def prompts_with_gaps(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, bos_token_id: int | None, *, new_tokens: int,
    gap_tokens: int | None = None,
) -> tuple[list[list[int]], bool]:  # fmt: skip
    """As `prompt_ids`, with a `BLANK` for each token that is to be written in a gap.

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
    gaps = 0

    def encode(text: str) -> list[int]:
        nonlocal gaps
        first, *others = GAPS.split(text)
        gaps += len(others)
        ids = _encode(first.rstrip(" ") if others else first, tokenizer, bos_token_id)
        for number, (gap, part) in enumerate(zip(GAPS.findall(text), others, strict=True), start=1):
            assert tokenizer is not None, "the text before was refused"
            ids += [BLANK] * (gap.count(GAP) * (gap_tokens or new_tokens))
            ids += continuing_tokens(tokenizer, part if number == len(others) else part.rstrip(" "))
        return ids

    rows, single = _rows(prompt, tokenizer, encode)
    if gap_tokens is not None and not gaps:
        raise UserError(f"gap_tokens is {gap_tokens}, but no prompt has a gap: write {GAP} where tokens are missing.")
    return rows, single


def _rows(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, encode: Callable[[str], list[int]]
) -> tuple[list[list[int]], bool]:
    """Token ids of each prompt, text by `encode`, and whether a single prompt was given."""
    given: Any = plain_prompt(prompt, tokenizer)
    if isinstance(given, str):
        return [encode(given)], True
    if not isinstance(given, Sequence) or not given:
        raise UserError(
            f"the prompt is {_short(given)}: give a string, token ids, or a list of strings or of token ids."
        )
    if all(map(is_whole, given)):
        return [list(given)], True
    for number, row in enumerate(given):
        if not isinstance(row, str) and not (isinstance(row, Sequence) and all(map(is_whole, row))):
            raise UserError(f"prompt {number} is {_short(row)}: give strings, or lists of whole numbers.")
    return [encode(row) if isinstance(row, str) else list(row) for row in given], False


def _encode(text: str, tokenizer: PreTrainedTokenizerBase | None, bos_token_id: int | None) -> list[int]:
    if tokenizer is None:
        raise UserError(f"the prompt is text ({_short(text)}) and tokenizer is None: give the tokenizer, or token ids.")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"the prompt {_short(text)} has bytes that are not UTF-8: convert it to UTF-8.")
    ids = prompt_tokens(tokenizer, text)
    if not ids and bos_token_id is not None:
        return [bos_token_id]
    if not ids:
        raise UserError("the prompt is '' and this network has no token that begins a text: give at least one word.")
    return ids


def stop_strings(stop: str | Sequence[str] | None, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """The strings that end a text.

    Raises:
        UserError: they are no strings, one is empty, or there is no tokenizer.
    """
    stops = () if stop is None else tuple(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else (stop,)
    if not all(isinstance(text, str) and text for text in stops):
        raise UserError(f"stop is {shown(stop)}: give strings of at least one character.")
    if stops and tokenizer is None:
        raise UserError(
            f"stop is {shown(stop)} and tokenizer is None: give the tokenizer, which tells where text stops."
        )
    return stops


# ---- ids to text -----------------------------------------------------------------------------------


class Continuation:
    """The text that continues a prompt, while its tokens are written.

    Bytes that are no whole character wait for the next tokens, so the text only grows: what n tokens say is how the
    text of more tokens begins.

    Args:
        tokenizer: of the prompt and of what is written.
        prompt: token ids.
        stops: strings that end the text and are no part of it; the name of a special token stands for that token.

    Attributes:
        text: what can be read so far.
        tokenizer: as given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt)
        self._stops = stops
        special = set(stops) & set(tokenizer.all_special_tokens) if stops else set()
        self._stop_ids = {tokenizer.convert_tokens_to_ids(stop) for stop in special}
        self._longest = max(map(len, stops), default=0)
        self._tokens = 0
        self._handed_out = 0

    def read(self, written: Sequence[int]) -> bool:
        """Reads on, given all that was written so far; whether the text comes to a stop string with what is new."""
        fresh, self._tokens = written[self._tokens :], len(written)
        may_begin = max(0, len(self.text) - self._longest + 1)
        self.text += self._detokenizer.read(fresh)
        found = [at for stop in self._stops if (at := self.text.find(stop, may_begin)) >= 0]
        self.text = self.text[: min(found, default=None)]
        return bool(found) or not self._stop_ids.isdisjoint(fresh)

    def piece(self, *, last: bool = False) -> str:
        """The text not handed out before, without an end that may begin a stop string unless it is the `last` piece."""
        begun = (n for stop in self._stops for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        start, self._handed_out = self._handed_out, len(self.text) - (0 if last else max(begun, default=0))
        return self.text[start : self._handed_out]


class Gaps:
    """The text that fills the gaps of a canvas, once all of it is written.

    Attributes:
        parts: the text of each gap.
        whole: the text of the canvas, gaps filled.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, canvas: Sequence[int]) -> None:
        self.parts: list[str] = []
        self.whole = ""
        self._tokenizer = tokenizer
        self._canvas = canvas

    @property
    def text(self) -> str:
        """The text of the gap; of several, the text of each, with `[...]` between them."""
        return GAP.join(self.parts)

    def read(self, written: Sequence[int]) -> bool:
        """Reads all that was written."""
        tokens = iter(written)
        filled = [next(tokens) if token_id == BLANK else token_id for token_id in self._canvas]
        self.whole = spell(self._tokenizer, filled)
        self.parts = []
        for is_blank, run in itertools.groupby(range(len(filled)), lambda at: self._canvas[at] == BLANK):
            positions = list(run)
            if is_blank:
                detokenizer = IncrementalDetokenizer(self._tokenizer, filled[: positions[0]])
                self.parts.append(detokenizer.read([filled[at] for at in positions]))
        return False


def filled(prompt: str, parts: Sequence[str]) -> str:
    """A prompt with the texts of its gaps; blanks before a gap are those of the text that fills it."""
    *befores, last = GAPS.split(prompt)
    return "".join(before.rstrip(" ") + part for before, part in zip(befores, parts, strict=True)) + last


def spell(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens and bytes at the end that are no whole character."""
    return IncrementalDetokenizer(tokenizer, ()).read(ids)


class IncrementalDetokenizer:
    """Spells tokens one after another: each costs the decoding of a few, however long the text is.

    Tokens cannot be decoded one by one. Alone they would read otherwise: SentencePiece drops the space at the
    beginning of a text, and a character may have its bytes in several tokens. So each is read behind the tokens that
    were read last, and not before its characters are whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        whole = next(
            # A character has 4 bytes at most. With the first of them, some tokenizers spoil all bytes before as well.
            (count for count in range(len(before), max(0, len(before) - 4), -1) if self._is_whole(before[:count])),
            len(before),
        )
        self._context = list(before[:whole])  # tokens that have been read last
        self._waiting = list(before[whole:])  # tokens that cannot be read yet

    def read(self, ids: Sequence[int]) -> str:
        """The text that can be read with these tokens and could not be read before."""
        known, text = self._decode(self._context), self._decode([*self._context, *self._waiting, *ids])
        if UNREADABLE in text and len(ids) > 1:
            # Some tokenizers spoil all bytes beside those that are no character.
            return "".join(self.read([token_id]) for token_id in ids)
        self._waiting += ids
        if len(text) <= len(known) or text.endswith(UNREADABLE):
            return ""
        self._context, self._waiting = self._waiting, []
        return text[len(known) :]

    def _is_whole(self, ids: Sequence[int]) -> bool:
        return not self._decode(ids).endswith(UNREADABLE)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
