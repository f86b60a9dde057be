"""From phrasings in any form to questions in token ids.

Every part is tokenized by itself, as text that goes on, so that no part depends on another one: phrasings can be
swapped, and a prefix is the same tokens before all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor

from anyorder.api.prompt_forms import listed, plain_prompt
from anyorder.api.prompts import Messages, TextEncoder
from anyorder.decoding.fusion.layout import Question
from anyorder.errors import UserError
from anyorder.utils.annotations import shown

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
    """Return the questions, and whether a single one was given, not a list of them; arguments as in `anyorder.fuse`.

    Raises:
        UserError: a part is of another kind or empty, or there is text without a tokenizer.
    """
    of_questions, single = _by_question(phrasings, tokenizer)
    prefixes = _one_each(listed(prefix), "prefix", len(of_questions))
    suffixes = _one_each(listed(suffix), "suffix", len(of_questions))
    shares = _weights_each(listed(weights), len(of_questions))
    end = _part(listed(separator), "separator")
    encoder, parts = TextEncoder(tokenizer), zip(of_questions, prefixes, suffixes, shares, strict=True)
    return [_question(encoder, *of_question, end) for of_question in parts], single


def _question(
    encoder: TextEncoder, phrasings: Sequence[Part], prefix: Part, suffix: Part, weights: tuple[float, ...] | None,
    separator: Part,
) -> Question:  # fmt: skip
    """Make token ids of the parts of one question."""
    # Without a prefix, phrasings are how a text begins: the tokens that begin it are the prefix.
    begins = prefix == "" and any(isinstance(phrasing, str) for phrasing in phrasings)
    prefix_ids = encoder.beginning(prefix) if prefix or begins else []

    def segment(phrasing: Part) -> tuple[int, ...]:
        end = separator
        if isinstance(phrasing, str) and isinstance(end, str):  # one text
            phrasing, end = phrasing + end, ""
        if isinstance(phrasing, str) and begins:
            phrasing = encoder.beginning(phrasing)[len(prefix_ids) :]
        return (*encoder.continuing(phrasing), *encoder.continuing(end))

    segments, suffix_ids = tuple(map(segment, phrasings)), encoder.continuing(suffix)
    return Question(segments=segments, prefix=tuple(prefix_ids), suffix=tuple(suffix_ids), weights=weights)


def _by_question(phrasings: Phrasings, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[list[Part]], bool]:
    """Return the phrasings of each question, and whether there is a single question.

    A phrasing can have the forms of a prompt: messages, or what tokenizers return; so can all of a question at once.
    """
    given: Any = plain_prompt(phrasings, tokenizer)
    if isinstance(given, str):
        raise UserError(f"phrasings is the text {shown(given)}: give a list of texts, one for each phrasing.")
    if not isinstance(given, Sequence) or not given:
        raise UserError(f"phrasings is {shown(given)}: give a list of at least one text or list of token ids.")
    parts = [plain_prompt(part, tokenizer) for part in given]
    if any(_is_part(part) and part != [] for part in parts):
        return [_phrasings(parts, "")], True
    return [_phrasings(part, f" of question {number}") for number, part in enumerate(parts)], False


def _phrasings(given: Any, where: str) -> list[Part]:
    """Return the phrasings of one question, at least one and none of them empty."""
    if not isinstance(given, Sequence):
        raise UserError(f"phrasings{where} are {shown(given)}: give a list of texts.")
    if not given:
        raise UserError(f"there are 0 phrasings{where}: give at least one.")
    parts = [_part(part, f"phrasing {index}{where}") for index, part in enumerate(given)]
    for index, part in enumerate(parts):
        if not (part.strip() if isinstance(part, str) else part):
            raise UserError(f"phrasing {index}{where} is {part!r}: write a question in it, or leave it out.")
    return parts


def _part(given: Any, name: str) -> Part:
    if not _is_part(given):
        raise UserError(f"{name} is {shown(given)}: give a text or a list of token ids.")
    return given


def _is_part(value: Any) -> TypeGuard[Part]:
    """Return whether a value is a text or a list of token ids; either may be empty."""
    ids = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return isinstance(value, str) or (ids and all(type(token_id) is int for token_id in value))


def _one_each(given: Any, name: str, count: int) -> list[Part]:
    """Return one part for each question."""
    if _is_part(given):
        return [given] * count
    if not isinstance(given, Sequence) or len(given) != count:
        entries = len(given) if isinstance(given, Sequence) else shown(given)
        raise UserError(f"{name} has {entries} entries for {count} questions: give one, or one for each question.")
    return [_part(part, f"{name} {number}") for number, part in enumerate(given)]


def _weights_each(given: Any, count: int) -> list[tuple[float, ...] | None]:
    """Return the weights of each question; None where there are none, or the name of a score that gives them later."""
    if given is None or isinstance(given, str):
        return [None] * count
    if not isinstance(given, Sequence):
        raise UserError(f"weights is {shown(given)}: give a number for each phrasing, in a list.")
    if not any(isinstance(entry, Sequence) for entry in given):
        return [tuple(given)] * count
    if len(given) != count or not all(isinstance(entry, Sequence) for entry in given):
        raise UserError(f"weights has {len(given)} entries for {count} questions: give one list for each question.")
    return [tuple(entry) for entry in given]
