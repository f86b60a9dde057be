"""Phrasings of questions as people give them, as questions in token ids.

Every part is tokenized by itself, as text that goes on, so that no part depends on another one: phrasings can be
swapped, and a prefix is the same tokens before all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as _short
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anyorder.api.prompt_forms import listed, plain_prompt
from anyorder.api.text import Messages
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens, prompt_tokens
from anyorder.decoding.fusion.question import Question
from anyorder.errors import UserError
from anyorder.utils.numbers import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = str | Sequence[int]
"""Text, or token ids."""

Phrasings = Sequence[Part] | Sequence[Sequence[Part]] | Tensor | Sequence[Messages] | Mapping[str, Any]
"""Of one question, or of several."""


def read_questions(
    phrasings: Phrasings,
    tokenizer: PreTrainedTokenizerBase | None,
    prefix: Part | Sequence[Part] = "",
    suffix: Part | Sequence[Part] = "",
    separator: Part = "",
    weights: str | Sequence[float] | Sequence[Sequence[float]] | None = None,
) -> tuple[list[Question], bool]:
    """The questions, and whether a single one was given, not a list of them; arguments as in `anyorder.fuse`.

    Raises:
        UserError: a part is of another kind or empty, or there is text without a tokenizer.
    """
    of_questions, single = _by_question(phrasings, tokenizer)
    prefixes = _one_each(listed(prefix), "prefix", len(of_questions))
    suffixes = _one_each(listed(suffix), "suffix", len(of_questions))
    separator = _separator(listed(separator))
    shares = _weights_each(listed(weights), len(of_questions))
    questions = []
    for number, of_question in enumerate(of_questions):
        name = "" if single else f" of question {number}"
        spell = _Detokenizer(tokenizer, prefixes[number], of_question)
        if not of_question:
            raise UserError(f"there are 0 phrasings{name}: give at least one.")
        for index, phrasing in enumerate(of_question):
            if not (phrasing.strip() if isinstance(phrasing, str) else phrasing):
                raise UserError(f"phrasing {index}{name} is {phrasing!r}: write a question in it, or leave it out.")
        questions.append(
            Question(
                segments=tuple(spell.segment(phrasing, listed(separator)) for phrasing in of_question),
                prefix=spell.prefix,
                suffix=spell.continuing(suffixes[number]),
                weights=shares[number],
            )
        )
    return questions, single


class _Detokenizer:
    """Makes token ids of the parts of one question.

    Args:
        tokenizer: may be None where all parts are token ids.
        prefix: the prefix as given.
        phrasings: the phrasings as given.

    Attributes:
        prefix: its token ids; where it is empty and phrasings are text, the tokens that begin a text, if any.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, prefix: Part, phrasings: Sequence[Part]) -> None:
        self.tokenizer = tokenizer
        self.begins = prefix == ""  # phrasings are how texts begin
        if isinstance(prefix, str):
            any_text = prefix or any(isinstance(phrasing, str) for phrasing in phrasings)
            prefix = prompt_tokens(self._require(prefix), prefix) if any_text else ()
        self.prefix = tuple(prefix)

    def segment(self, phrasing: Part, separator: Part) -> tuple[int, ...]:
        """A phrasing and its separator: one text where both are text."""
        if isinstance(phrasing, str) and isinstance(separator, str):
            phrasing, separator = phrasing + separator, ""
        if isinstance(phrasing, str) and self.begins:
            phrasing = prompt_tokens(self._require(phrasing), phrasing)[len(self.prefix) :]
        return self.continuing(phrasing) + self.continuing(separator)

    def continuing(self, part: Part) -> tuple[int, ...]:
        """A part that is not the first."""
        if isinstance(part, str):
            return tuple(continuing_tokens(self._require(part), part)) if part else ()
        return tuple(part)

    def _require(self, text: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise UserError(f"{_short(text)} is text and tokenizer is None: give the tokenizer, or token ids.")
        return self.tokenizer


def _by_question(phrasings: Phrasings, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[list[Part]], bool]:
    """The phrasings of each question, and whether there is a single question.

    A phrasing can have the forms of a prompt: messages, or what tokenizers return; so can all of a question at once.
    """
    given: Any = plain_prompt(phrasings, tokenizer)
    if isinstance(given, str):
        raise UserError(f"phrasings is the text {_short(given)}: give a list of texts, one for each phrasing.")
    if not isinstance(given, Sequence) or not given:
        raise UserError(f"phrasings is {_short(given)}: give a list of at least one text or list of token ids.")
    parts = [plain_prompt(part, tokenizer) for part in given]
    if any(map(_is_part, parts)):
        return [_parts(parts, "phrasing {}")], True
    for number, of_question in enumerate(parts):
        if not isinstance(of_question, Sequence):
            raise UserError(f"phrasings of question {number} are {_short(of_question)}: give a list of texts.")
    return [
        _parts(of_question, f"phrasing {{}} of question {number}") for number, of_question in enumerate(parts)
    ], False


def _parts(given: Sequence[Any], name: str) -> list[Part]:
    for index, part in enumerate(given):
        if not (_is_part(part) or part == []):
            raise UserError(f"{name.format(index)} is {_short(part)}: give a text or a list of token ids.")
    return list(given)


def _is_part(value: object) -> bool:
    """A text, or a list of at least one token id."""
    if isinstance(value, str):
        return True
    if isinstance(value, bytes):
        return False
    return isinstance(value, Sequence) and bool(value) and all(map(is_whole, value))


def _one_each(given: Any, name: str, count: int) -> list[Part]:
    """One part for each question."""
    if _is_part(given) or given == []:
        return [given] * count
    if not isinstance(given, Sequence) or len(given) != count:
        entries = len(given) if isinstance(given, Sequence) else _short(given)
        raise UserError(f"{name} has {entries} entries for {count} questions: give one, or one for each question.")
    return _parts(given, f"{name} {{}}")


def _separator(given: Any) -> Part:
    if not (_is_part(given) or given == []):
        raise UserError(f"separator is {_short(given)}: give a text or a list of token ids.")
    part: Part = given
    return part


def _weights_each(given: Any, count: int) -> list[tuple[float, ...] | None]:
    """The weights of each question; None where there are none, or the name of a score that gives them later."""
    if given is None or isinstance(given, str):
        return [None] * count
    if not isinstance(given, Sequence):
        raise UserError(f"weights is {_short(given)}: give a number for each phrasing, in a list.")
    if not any(isinstance(entry, Sequence) for entry in given):
        return [tuple(given)] * count
    if len(given) != count or not all(isinstance(entry, Sequence) for entry in given):
        raise UserError(f"weights has {len(given)} entries for {count} questions: give one list for each question.")
    return [tuple(entry) for entry in given]
