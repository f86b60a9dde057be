"""Phrasings of questions as people give them, as questions in token ids.

Every part is tokenized by itself, as text that goes on, so that no part depends on another one: phrasings can be
swapped, and a prefix is the same tokens before all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as _short
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anyorder.api.prompt_forms import plain_prompt
from anyorder.api.text import Messages
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens, prompt_tokens
from anyorder.decoding.fusion.question import Question
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = str | Sequence[int]
"""Text, or token ids."""

Phrasings = Sequence[Part] | Sequence[Sequence[Part]] | Tensor | Sequence[Messages] | Mapping[str, Any]
"""Of one question, or of several."""


def read_questions(
    phrasings: Phrasings,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    prefix: Part | Sequence[Part] = "",
    suffix: Part | Sequence[Part] = "",
    separator: Part = "",
    weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
) -> tuple[list[Question], bool]:
    """The questions, and whether a single one was given, not a list of them; arguments as in `anyorder.fuse`.

    Raises:
        UserError: a part is of another kind or empty, or there is text without a tokenizer.
    """
    asked, single = _asked(phrasings, tokenizer)
    prefixes = _one_each(prefix, "prefix", len(asked))
    suffixes = _one_each(suffix, "suffix", len(asked))
    separator = _separator(separator)
    shares = _weights_each(weights, len(asked))
    questions = []
    for number, of_question in enumerate(asked):
        name = "" if single else f" of question {number}"
        spell = _Speller(tokenizer, prefixes[number], of_question)
        if not of_question:
            raise UserError(f"there are 0 phrasings{name}: give at least one.")
        segments = []
        for index, phrasing in enumerate(of_question):
            if not (phrasing.strip() if isinstance(phrasing, str) else phrasing):
                raise UserError(f"phrasing {index}{name} is {phrasing!r}: write a question in it, or leave it out.")
            segments.append(spell.segment(phrasing, separator))
        ids = tuple(spell.going_on(suffixes[number]))
        questions.append(Question(segments=tuple(segments), prefix=spell.prefix, suffix=ids, weights=shares[number]))
    return questions, single


class _Speller:
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
        self.begins = isinstance(prefix, str) and not prefix  # phrasings are how texts begin
        if not isinstance(prefix, str):
            self.prefix = tuple(prefix)
        elif prefix or any(isinstance(phrasing, str) for phrasing in phrasings):
            self.prefix = tuple(prompt_tokens(self._require(prefix), prefix))
        else:
            self.prefix = ()

    def segment(self, phrasing: Part, separator: Part) -> tuple[int, ...]:
        """A phrasing and its separator: one text where both are text."""
        if isinstance(phrasing, str) and isinstance(separator, str):
            phrasing, separator = phrasing + separator, ""
        if isinstance(phrasing, str) and self.begins:
            ids = prompt_tokens(self._require(phrasing), phrasing)
            return (*ids[len(self.prefix) :], *self.going_on(separator))
        return (*self.going_on(phrasing), *self.going_on(separator))

    def going_on(self, part: Part) -> Sequence[int]:
        """A part that is not the first."""
        if isinstance(part, str):
            return continuing_tokens(self._require(part), part) if part else ()
        return part

    def _require(self, text: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise UserError(f"{_short(text)} is text and tokenizer is None: give the tokenizer, or token ids.")
        return self.tokenizer


def _asked(phrasings: Phrasings, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[list[Part]], bool]:
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
    parts = [_listed(part) for part in given]
    for index, part in enumerate(parts):
        if not (_is_part(part) or part == []):
            raise UserError(f"{name.format(index)} is {_short(part)}: give a text or a list of token ids.")
    return parts


def _is_part(value: object) -> bool:
    """A text, or a list of at least one token id."""
    if isinstance(value, str):
        return True
    if isinstance(value, bytes):
        return False
    return isinstance(value, Sequence) and bool(value) and all(type(token_id) is int for token_id in value)


def _one_each(given: Part | Sequence[Part] | Tensor, name: str, count: int) -> list[Part]:
    """One part for each question."""
    value = _listed(given)
    if _is_part(value) or value in ([], ()):
        return [value] * count
    if not isinstance(value, Sequence) or len(value) != count:
        entries = len(value) if isinstance(value, Sequence) else _short(value)
        raise UserError(f"{name} has {entries} entries for {count} questions: give one, or one for each question.")
    return _parts(value, f"{name} {{}}")


def _separator(given: Part | Tensor) -> Part:
    value = _listed(given)
    if not (_is_part(value) or value in ([], ())):
        raise UserError(f"separator is {_short(value)}: give a text or a list of token ids.")
    part: Part = value
    return part


def _weights_each(given: Any, count: int) -> list[tuple[float, ...] | None]:
    if given is None:
        return [None] * count
    value = _listed(given)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"weights is {_short(value)}: give a number for each phrasing, in a list.")
    if not any(isinstance(entry, Sequence) for entry in value):
        return [tuple(value)] * count
    if len(value) != count or not all(isinstance(entry, Sequence) for entry in value):
        raise UserError(f"weights has {len(value)} entries for {count} questions: give one list for each question.")
    return [tuple(entry) for entry in value]


def _listed(given: Any) -> Any:
    """The numbers of a tensor or an array in lists; anything else as it is."""
    return given.tolist() if hasattr(given, "tolist") else given
