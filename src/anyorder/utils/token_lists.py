"""Token ids in the forms that people have them: lists, tensors, arrays, and what a tokenizer returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from anyorder.errors import UserError
from anyorder.utils.annotations import shown

Ids = Tensor | Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Any]
"""Token ids `[batch, length]`, or those of a text, or of each text; or what a tokenizer returns for them, whose padding
is left out by its `attention_mask`."""


def listed(value: Any) -> Any:
    """Convert tensors, arrays and their numbers to lists of Python's integers, also within lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [listed(entry) for entry in value]
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def without_padding(encoded: Mapping[str, Any]) -> Any:
    """Return the `input_ids` of what a tokenizer returns as lists, without the padding of its `attention_mask`.

    Args:
        encoded: `input_ids` and, where there is padding, `attention_mask`, of one text or of several.

    Raises:
        UserError: there are no `input_ids`, or the attention mask has another shape.
    """
    if "input_ids" not in encoded:
        raise UserError(f"ids has {sorted(encoded)} and no input_ids: give token ids, or what a tokenizer returns.")
    ids, mask = listed(encoded["input_ids"]), listed(encoded.get("attention_mask"))
    if mask is None:
        return ids
    rows, masks = (ids, mask) if ids and isinstance(ids[0], list) else ([ids], [mask])
    if len(rows) != len(masks) or any(len(row) != len(of_row) for row, of_row in zip(rows, masks, strict=True)):
        raise UserError(f"attention_mask is {shown(mask)}: give a number for each of the input_ids.")
    kept = [
        [token_id for token_id, is_kept in zip(row, of_row, strict=True) if is_kept]
        for row, of_row in zip(rows, masks, strict=True)
    ]
    return kept if rows is ids else kept[0]


def token_lists(ids: Any) -> list[Sequence[int]]:
    """Return a list of token ids for each text, without padding where it is known.

    Args:
        ids: token ids of one text or of several: lists, a tensor, or what a tokenizer returns.

    Raises:
        UserError: see `without_padding`.
    """
    rows = without_padding(ids) if isinstance(ids, Mapping) else listed(ids)
    return list(rows) if rows and isinstance(rows[0], Sequence) else [rows]
