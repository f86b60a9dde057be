"""Texts whose tokens are known already, and which of them are trained on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from anyorder.data.fields import BadRecordError, Fields, mark
from anyorder.data.records import Place, TokenIds
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import is_whole

IGNORED = -100
"""What transformers writes as the label of a token that is not trained on."""

MASKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask")
"""Names of lists that have 1 for each token that is trained on."""

BESIDE = ("text", "special_tokens_mask", "token_type_ids")
"""Fields that say nothing new."""


def read_ids(form: str, place: Place, fields: Fields) -> TokenIds:
    """Return token ids without their padding; labels and masks become the spans of tokens that are trained on.

    Raises:
        BadRecordError: they are no token ids, or a field contradicts them.
    """
    ids = _whole_numbers(fields.get("input_ids"), "input_ids")
    for name in BESIDE:
        fields.get(name)
    loss_mask = _loss_mask(fields, ids)
    length = fields.get("prompt_length")
    if length is not None and not (is_whole(length) and 0 <= length < len(ids)):
        raise BadRecordError(
            f"`prompt_length` is {shown(length)} and there are {len(ids)} tokens",
            "give the number of tokens before the answer, which has at least one",
        )
    begin, end = _present(fields, len(ids))
    _refuse_packed(fields, begin, end)
    answer_spans = None if loss_mask is None else _spans(loss_mask[begin:end])
    if answer_spans == ():
        raise BadRecordError("has no token that is trained on", "leave it out")
    if length is not None:
        length = max(0, length - begin)
        if answer_spans is not None and answer_spans[0][0] < length:
            raise BadRecordError("marks tokens of the prompt as trained on", "leave `prompt_length` or the labels out")
    return TokenIds(place=place, form=form, ids=tuple(ids[begin:end]), prompt_length=length, answer_spans=answer_spans)


def _whole_numbers(value: object, name: str) -> list[int]:
    if not isinstance(value, list) or not value or not all(map(is_whole, value)):
        raise BadRecordError(f"`{name}` is {shown(value)}", "give a list of whole numbers, at least one")
    return value


def _beside(fields: Fields, name: str, length: int) -> list[int] | None:
    """Return a list that has a number for each token."""
    if (value := fields.get(name)) is None:
        return None
    if isinstance(value, list) and len(value) != length:
        raise BadRecordError(f"`{name}` has {len(value)} numbers and there are {length} tokens", "give one per token")
    if isinstance(value, list) and all(type(number) is bool for number in value):
        value = list(map(int, value))
    return _whole_numbers(value, name)


def _loss_mask(fields: Fields, ids: Sequence[int]) -> list[bool] | None:
    """Return whether each token is a target; None where no field says so."""
    masks: list[list[bool]] = []
    if (labels := _beside(fields, "labels", len(ids))) is not None:
        wrong = next((at for at, label in enumerate(labels) if label not in (IGNORED, ids[at])), None)
        if wrong is not None:
            raise BadRecordError(
                f"`labels` has {labels[wrong]} at place {wrong}, where the token is {ids[wrong]}",
                f"give the token itself, or {IGNORED} where it is not trained on",
            )
        masks.append([label != IGNORED for label in labels])
    for name in MASKS:
        if (mask := _beside(fields, name, len(ids))) is not None:
            masks.append([bool(mark(number, f"`{name}`")) for number in mask])
    return [all(marks) for marks in zip(*masks, strict=True)] if masks else None


def _present(fields: Fields, length: int) -> tuple[int, int]:
    """Begin and end of the tokens that are no padding."""
    mask = _beside(fields, "attention_mask", length)
    if mask is None:
        return 0, length
    shown = [at for at, number in enumerate(mask) if mark(number, "`attention_mask`")]
    if not shown or len(shown) != shown[-1] + 1 - shown[0]:
        raise BadRecordError(
            "`attention_mask` hides more than padding at the ends", "give a mask of 1 for the text and 0 around it"
        )
    return shown[0], shown[-1] + 1


def _refuse_packed(fields: Fields, begin: int, end: int) -> None:
    """Refuse positions that begin anew: they separate documents, which would see each other here."""
    positions = fields.get("position_ids")
    if positions is not None and isinstance(positions, list):
        kept = positions[begin:end]
        if kept != list(range(kept[0], kept[0] + len(kept)) if kept and type(kept[0]) is int else []):
            raise BadRecordError(
                "`position_ids` do not count up, as in packed texts", "give each text a line of its own"
            )


def _spans(loss_mask: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """Begin and end of each run of tokens that are trained on."""
    begins = [0, *itertools.accumulate(len(list(run)) for _, run in itertools.groupby(loss_mask))]
    return tuple((begin, end) for begin, end in itertools.pairwise(begins) if loss_mask[begin])
