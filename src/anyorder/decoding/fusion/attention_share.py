"""Attention that rows pay to groups of keys.

The attention that a row pays to a group is what it would read if the values of the group's keys were 1 and those of all
others 0. So each layer attends once more, with the backend and the mask that it has, and no weight is ever taken apart.

Shape suffixes: B batch, R rows, E hidden size, H heads, G key-value heads, D head dimension, P groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyorder.attention import attend
from anyorder.decoding.fusion.layout import SEGMENT, Question
from anyorder.decoding.fusion.method import Fusion
from anyorder.decoding.fusion.reader import masked_pass
from anyorder.errors import UserError
from anyorder.model.llama import Llama, Views
from anyorder.model.self_attention import SelfAttention
from anyorder.model.view import View


@torch.no_grad()
def attention_shares(model: Llama, ids_BR: Tensor, views: Views, group_BR: Tensor, groups: int) -> Tensor:
    """Return the attention that each row pays to each group of keys, the mean over layers and heads.

    Args:
        model: the network.
        ids_BR: tokens of a pass without a cache.
        views: what `model.prepare` made for it.
        group_BR: the group of each key, from 0; a key of another number is in none.
        groups: number of groups.

    Returns:
        `[batch, rows, groups]`; a row's shares add up to 1 if every key is in a group.

    Raises:
        UserError: a layer has an attention of another kind than those of this package.
    """
    width = model.config.head_dim
    one_BRP = (group_BR.unsqueeze(-1) == torch.arange(groups, device=group_BR.device)).to(model.dtype)
    values = F.pad(one_BRP, (0, -groups % width)).split(width, -1)  # a call takes as many groups as a head is wide
    found: list[Tensor] = []

    def attend_to_groups(module: nn.Module, given: tuple[Tensor, View, object]) -> None:
        if not isinstance(module, SelfAttention):
            kind = type(module).__name__
            raise UserError(f"attention is {kind}, of which no shares are known: derive it from SelfAttention.")
        rows_BRE, view, _ = given
        q_BRHD, k_BRGD, _ = module.projected(rows_BRE, view)
        per_head = [one_BRD.unsqueeze(2).expand_as(k_BRGD).to(k_BRGD.dtype) for one_BRD in values]
        shares = [attend(q_BRHD, k_BRGD, one_BRGD, view.mask).mean(2) for one_BRGD in per_head]
        found.append(torch.cat(shares, -1)[..., :groups])

    with ExitStack() as hooks:
        for layer in model.model.layers:
            attention = layer.get_submodule("self_attn")
            hooks.enter_context(attention.register_forward_pre_hook(attend_to_groups))
        model.hidden(ids_BR, views)
    return torch.stack(found).mean(0)


def segment_shares(
    model: Llama, questions: Sequence[Question], fusion: Fusion, written: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the attention to each phrasing, averaged over the rows whose logits chose the tokens of the answer.

    What is missing to 1 went to prefix, suffix and answer. Takes one pass over each question and its answer.

    Args:
        model: the network.
        questions: the questions that were answered.
        fusion: the positions and the correction of the answers.
        written: the answer of each question.
    """
    rows, views = masked_pass(model, questions, fusion, written)
    most = max(len(question.segments) for question in questions)
    group_BR = torch.where(rows.labels["part"] == SEGMENT, rows.labels["segment"] - 1, -1)
    share_BRP = attention_shares(model, rows.ids, views, group_BR, most)
    found = []
    for share_RP, question, ids in zip(share_BRP, questions, written, strict=True):
        layout = question.layout(fusion.positions)
        first = max(layout.length - 1, layout.suffix_start)  # without a suffix no row chose the first token alone
        last = max(layout.length + len(ids) - 1, first + 1)
        found.append(share_RP[first:last, : len(question.segments)].mean(0).tolist())
    return found
