"""A plain call of a network, `model(ids)`: the rows, the visibility and the targets of a mode.

Shape suffixes: B batch, L length, E hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.visibility import groups

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

IGNORED = -100
"""The label of tokens that are not predicted, as in transformers."""


def positions_of(valid_BL: Tensor) -> Tensor:
    """True positions `[batch, length]`, which do not count padding."""
    return (valid_BL.long().cumsum(1) - 1).clamp(min=0)


def check_tokens(input_ids: Tensor) -> None:
    """Refuse what is no batch of tokens.

    Raises:
        UserError: see above.
    """
    if not isinstance(input_ids, Tensor):
        kind = type(input_ids).__name__
        raise UserError(f"input_ids is of type {kind}: give a tensor of whole numbers [batch, length].")
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        found = f"{input_ids.dtype} of shape {list(input_ids.shape)}"
        raise UserError(f"input_ids is {found}: give whole numbers [batch, length].")


def valid_of(attention_mask: Tensor) -> Tensor:
    """Which tokens are no padding, boolean, of a mask with 1 for tokens and 0 for padding.

    Raises:
        UserError: the mask has other values, such as numbers of texts packed into a row, or terms added to scores.
    """
    valid: Tensor = attention_mask != 0
    if attention_mask.dtype is not torch.bool and bool((valid & (attention_mask != 1)).any()):
        other = attention_mask[valid & (attention_mask != 1)][0].item()
        remedy = "give 1 for tokens and 0 for padding, and each text a row of its own"
        raise UserError(f"attention_mask has the value {other:g}: {remedy}.")
    return valid


def predicting_rows(shifted: bool, position_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """The column of the row that predicts the token in each column, int64 `[batch, length]`.

    Where logits are shifted it is the row of the token before, whatever padding lies between; the first token is
    predicted by its own row, as in `Mode.row`, and so is padding.

    Args:
        shifted: whether the logits of a row are those of the token after it.
        position_BL: true positions, each once in a text, `[batch, length]`.
        valid_BL: False for padding, boolean `[batch, length]`.
    """
    column_BL = torch.arange(position_BL.shape[1], device=position_BL.device).expand_as(position_BL)
    if not shifted:
        return column_BL
    last = torch.iinfo(position_BL.dtype).max
    order_BL = position_BL.masked_fill(~valid_BL, last).argsort(dim=1, stable=True)
    before_BL = torch.cat((order_BL[:, :1], order_BL[:, :-1]), 1)
    row_BL = torch.empty_like(order_BL).scatter(1, order_BL, before_BL)
    return torch.where(valid_BL, row_BL, column_BL)


def gather_rows(hidden_BLE: Tensor, row_BL: Tensor) -> Tensor:
    """The rows in these columns, `[batch, length, hidden]`."""
    return hidden_BLE.gather(1, row_BL.unsqueeze(2).expand(-1, -1, hidden_BLE.shape[2]))


def read_as(model: Llama, mode: Mode, input_ids_BL: Tensor, valid_BL: Tensor | None) -> Tensor:
    """The rows that logits are read from, `[batch, length, hidden]`.

    In a causal mode row i predicts token i + 1; in every other mode it predicts token i, also where the
    network's own logits are shifted. Without `valid_BL` there is no padding.

    Raises:
        UserError: the mode is left to right, but not shifted.
    """
    every_BL = torch.ones_like(input_ids_BL, dtype=torch.bool) if valid_BL is None else valid_BL
    position_BL = positions_of(every_BL)
    if mode.kind.query_rows:
        return _two_streams(model, input_ids_BL, position_BL, valid_BL)
    labels = {} if mode.kind.labels is None else mode.kind.labels(mode, position_BL, every_BL)
    views = model.prepare(mode.kind.visibility(mode), {"position": position_BL, **labels}, valid=valid_BL)
    hidden_BLE = model.hidden(input_ids_BL, views)
    if mode.kind.causal:
        if not mode.shifted:
            raise UserError(f"the mode {mode.name!r} is not shifted: give a network whose rows predict the next token.")
        return hidden_BLE
    return gather_rows(hidden_BLE, predicting_rows(mode.shifted, position_BL, every_BL))


def _two_streams(model: Llama, input_ids_BL: Tensor, position_BL: Tensor, valid_BL: Tensor | None) -> Tensor:
    """The query rows of one token a group, left to right."""
    length = position_BL.shape[1]
    labels = {
        "position": position_BL.repeat(1, 2),
        "rank": position_BL.repeat(1, 2),
        "stream": torch.cat((torch.zeros_like(position_BL), torch.ones_like(position_BL)), 1),
    }
    valid_BR = None if valid_BL is None else valid_BL.repeat(1, 2)
    views = model.prepare(groups(), labels, n_keys=length, valid=valid_BR)
    return model.two_streams(input_ids_BL, position_BL, views)[:, length:]


def targets_of(mode: Mode, labels_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """The token that each row of `read_as` predicts, IGNORED where it is not counted, `[batch, length]`.

    Padding predicts nothing, and is not predicted.
    """
    if mode.kind.causal:
        return next_tokens(labels_BL, valid_BL)
    return labels_BL.masked_fill(~valid_BL, IGNORED)


def next_tokens(labels_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """The label of the token after each, whatever padding lies between; IGNORED where there is none."""
    order_BL = (~valid_BL).long().argsort(dim=1, stable=True)  # the tokens first
    label_BL = labels_BL.masked_fill(~valid_BL, IGNORED).gather(1, order_BL)
    return torch.empty_like(label_BL).scatter(1, order_BL, F.pad(label_BL[:, 1:], (0, 1), value=IGNORED))


def mean_loss(logits_BLV: Tensor, target_BL: Tensor, count: Tensor | int | None = None) -> Tensor:
    """The cross-entropy in nats, summed over the targets and divided by their number unless `count` is given."""
    wide_NV = logits_BLV.flatten(0, 1).to(torch.promote_types(logits_BLV.dtype, torch.float32))
    summed = F.cross_entropy(wide_NV, target_BL.flatten(), ignore_index=IGNORED, reduction="sum")
    return summed / ((target_BL != IGNORED).sum() if count is None else count)
