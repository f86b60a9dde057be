"""Attention that rows pay to groups of keys.

The attention that a row pays to a group is what it would read if the values of the group's keys were 1 and those of all
others 0. So each layer attends once more, with the backend and the mask that it has, and no weight is ever taken apart.

Shape suffixes: B batch, R rows, K keys, E hidden size, G key-value heads, D head dimension, P groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anyorder.attention import attend
from anyorder.decoding.fusion.layout import SEGMENT
from anyorder.decoding.fusion.question import Fusion, Question
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
        group_BR: the group of each key, from 0; those of other numbers are in none.
        groups: number of groups.

    Returns:
        `[batch, rows, groups]`; a row's shares add up to 1 if every key is in a group.

    Raises:
        UserError: a layer has an attention of another kind than those of this package.
    """
    found: list[Tensor] = []

    def watch(module: nn.Module, given: tuple[Tensor, View, object]) -> None:
        if not isinstance(module, SelfAttention):
            kind = type(module).__name__
            raise UserError(f"attention is {kind}, of which no shares are known: derive it from SelfAttention.")
        q_BRHD, k_BKGD, _ = module.projected(given[0], given[1])
        found.append(_shares(q_BRHD, k_BKGD, given[1], group_BR, groups))

    attentions = [layer.get_submodule("self_attn") for layer in model.model.layers]
    handles = [attention.register_forward_pre_hook(watch) for attention in attentions]
    try:
        model.hidden(ids_BR, views)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found).mean(0)


def _shares(q_BRHD: Tensor, k_BKGD: Tensor, view: View, group_BR: Tensor, groups: int) -> Tensor:
    """Return the shares of one layer. A column of the values is a group, so a call does as many as a head is wide."""
    width = k_BKGD.shape[-1]
    shares = []
    for first in range(0, groups, width):
        column_D = torch.arange(first, first + width, device=group_BR.device)
        one_BKGD = (group_BR[:, : k_BKGD.shape[1], None, None] == column_D).expand_as(k_BKGD).to(k_BKGD.dtype)
        shares.append(attend(q_BRHD, k_BKGD, one_BKGD, view.mask).mean(2))
    return torch.cat(shares, -1)[..., :groups]


def segment_shares(
    model: Llama, questions: Sequence[Question], fusion: Fusion, written: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the attention that the rows which chose an answer's tokens paid to each phrasing, the mean over tokens.

    What is missing to 1 went to prefix, suffix and answer. One pass over each question and its answer.

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
