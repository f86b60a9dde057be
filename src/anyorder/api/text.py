"""From token ids to text that grows while it is written: continuations of prompts, and gaps that are filled."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GAP = "[...]"
"""Stands in the text of a prompt where tokens are to be written."""

GAPS = re.compile(r"\[\.\.\.\](?: *\[\.\.\.\])*")
"""A gap, or several with nothing but blanks between them, which become one."""

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers give for bytes that are no character."""


def stop_strings(stop: str | Sequence[str] | None, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Return the strings that end a text.

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


def detokenizer_of(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]
) -> Continuation | Gaps:
    """Return an empty text for the tokens that are written for a prompt or a canvas.

    Raises:
        UserError: there is something to stop at in a gap, which is filled to its end.
    """
    if BLANK not in prompt:
        return Continuation(tokenizer, prompt, stops)
    first = prompt.index(BLANK)
    if any(token_id != BLANK for token_id in prompt[first:]):
        if stops:
            raise UserError(f"stop is {list(stops)}, but a gap is always filled to its end: leave out stop.")
        return Gaps(tokenizer, prompt)
    return Continuation(tokenizer, prompt[:first], stops)


class Continuation:
    """The text that continues a prompt, while its tokens are written.

    Bytes that are no whole character wait for the next tokens, so the text only grows: what n tokens say is how the
    text of more tokens begins.

    Args:
        tokenizer: of the prompt and of what is written.
        prompt: token ids.
        stops: strings that end the text and are no part of it; the name of a special token means that token.

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
        self._returned = 0

    def update(self, written: Sequence[int]) -> bool:
        """Update the text, given all that was written so far; return whether the text has come to a stop string."""
        fresh, self._tokens = written[self._tokens :], len(written)
        may_begin = max(0, len(self.text) - self._longest + 1)
        self.text += self._detokenizer.read(fresh)
        found = [at for stop in self._stops if (at := self.text.find(stop, may_begin)) >= 0]
        self.text = self.text[: min(found, default=None)]
        return bool(found) or not self._stop_ids.isdisjoint(fresh)

    def piece(self, *, last: bool = False) -> str:
        """Return the text not returned before; unless it is the `last`, without an end that may begin a stop string."""
        begun = (n for stop in self._stops for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        start, self._returned = self._returned, len(self.text) - (0 if last else max(begun, default=0))
        return self.text[start : self._returned]


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

    def update(self, written: Sequence[int]) -> bool:
        """Update the texts, given all that was written."""
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
    """Fill the gaps of a prompt with texts, which have the blanks before a gap as their own."""
    *befores, last = GAPS.split(prompt)
    return "".join(before.rstrip(" ") + part for before, part in zip(befores, parts, strict=True)) + last


def spell(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Spell token ids as text, without special tokens and bytes at the end that are no whole character."""
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
        """Return the text that can be read with these tokens and could not be read before."""
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
