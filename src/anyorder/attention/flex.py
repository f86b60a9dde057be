"""FlexAttention: any visibility, without a tensor of rows x keys.

Block lists come from the label ranges of blocks of rows and keys, so building them costs
(rows / 128) x (keys / 128). Rows sorted by the label that is compared give the sparsest lists.

FlexAttention compiles anew for every shape and for every new function object, and past a limit it
would fall back to an eager path of rows x keys. So lengths are padded to a few sizes, functions are
kept for the life of the process while only their tensors change, and past the limit it raises.

Shape suffixes: B batch, Q query rows, K keys, I and J blocks of rows and keys, C rows of one block,
H heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from anyorder.attention.backends import Backend, Capabilities
from anyorder.attention.hints import lowest_and_highest
from anyorder.attention.mask import AttentionMask, BiasTerm, Request
from anyorder.visibility import Labels, Ranges, Visibility

BLOCK = 128
"""Rows, and keys, of one block."""

COMPILED_SHAPES = 64
"""Distinct shapes and rules that one process may compile before FlexAttention refuses more."""


class Flex(Backend):
    """`flex_attention` of PyTorch, compiled."""

    name = "flex"
    can = Capabilities(
        devices=("cpu", "cuda"),
        backward=("cuda",),
        dtypes=(torch.float16, torch.bfloat16, torch.float32),
        lse=False,
    )

    def compile(self, request: Request) -> AttentionMask:
        rows, keys = request.query["position"].shape[1], request.key["position"].shape[1]
        present = torch.ones_like(request.key["position"], dtype=torch.bool)
        empty_BQ = empty_rows(request.visibility, request.query, request.key, request.present)
        more_rows, more_keys = padded_length(rows) - rows, padded_length(keys) - keys
        query, key = _pad_labels(request.query, more_rows), _pad_labels(request.key, more_keys)
        present = F.pad(present if request.present is None else request.present, (0, more_keys))
        opened = F.pad(empty_BQ, (0, more_rows), value=True)
        functions = flex_functions(request.visibility, tuple(term.relation for term in request.bias))
        plan = FlexPlan(
            functions=functions,
            blocks=block_mask(request.visibility, query, key, present, opened, functions.mask),
            query=query,
            key=key,
            present=present,
            opened=opened,
            bias=tuple(_per_sample(term, len(present), present.device) for term in request.bias),
        )
        return AttentionMask(self.name, empty_BQ=empty_BQ if bool(empty_BQ.any()) else None, flex=plan)

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float) -> Tensor:
        plan = mask.flex
        assert plan is not None
        functions = plan.functions
        functions.plan = plan
        rows, keys = plan.opened.shape[1], plan.present.shape[1]
        out_BHQD = _compiled_flex_attention()(
            _pad_rows(q_BQHD, rows).transpose(1, 2),
            _pad_rows(k_BKGD, keys).transpose(1, 2),
            _pad_rows(v_BKGD, keys).transpose(1, 2),
            score_mod=functions.score if plan.bias else None,
            block_mask=plan.blocks,
            scale=scale,
            enable_gqa=q_BQHD.shape[2] != k_BKGD.shape[2],
        )
        return out_BHQD.transpose(1, 2)[:, : q_BQHD.shape[1]]


@dataclass(frozen=True)
class FlexPlan:
    """FlexAttention's form of a mask, for rows and keys padded to the sizes that it was built for.

    Attributes:
        functions: the rule, which reads this plan while it is attended with.
        blocks: which blocks of rows look at which blocks of keys.
        query, key: padded labels; `present` and `opened` tell the keys that exist and the empty rows.
        bias: values `[batch]` of the bias terms.
    """

    functions: FlexFunctions
    blocks: BlockMask
    query: dict[str, Tensor]
    key: dict[str, Tensor]
    present: Tensor
    opened: Tensor
    bias: tuple[Tensor, ...]


class FlexFunctions:
    """The `mask_mod` and `score_mod` of one rule; `plan` is set right before each call."""

    def __init__(self, visibility: Visibility, relations: tuple[Visibility, ...]) -> None:
        self.visibility = visibility
        self.relations = relations
        self.plan: FlexPlan | None = None

    def mask(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether row q of sample b sees key k; empty rows see every key of the blocks they read."""
        plan = self.plan
        assert plan is not None
        seen = self.visibility.sees(lambda name: plan.query[name][b, q], lambda name: plan.key[name][b, k])
        return (seen & plan.present[b, k]) | plan.opened[b, q]

    def score(self, score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The score with the bias of every relation that holds between row q and key k."""
        plan = self.plan
        assert plan is not None
        for relation, value in zip(self.relations, plan.bias, strict=True):
            pair = relation.sees(lambda name: plan.query[name][b, q], lambda name: plan.key[name][b, k])
            score = score + torch.where(pair, value[b], 0.0)
        return score


@functools.cache
def flex_functions(visibility: Visibility, relations: tuple[Visibility, ...]) -> FlexFunctions:
    """The functions of this rule: the same objects whenever it is asked for again."""
    return FlexFunctions(visibility, relations)


def block_mask(
    visibility: Visibility, query: Labels, key: Labels, present: Tensor, opened: Tensor,
    mask_mod: Callable[..., Tensor],
) -> BlockMask:  # fmt: skip
    """Which blocks of keys each block of rows reads in full, in part, or not at all.

    Args:
        query, key: labels, each `[batch, rows]` and `[batch, keys]`.
        present: keys that exist, boolean `[batch, keys]`.
        opened: rows that see nothing, boolean `[batch, rows]`; they are given the first block of keys.
        mask_mod: the exact rule, applied within blocks read in part.
    """
    present_BJC = _blocks(present)
    inside_JC = _blocks(torch.ones_like(present[:1]))[0]  # false behind the end of the last block
    key_ranges = _block_ranges(key, present_BJC)
    query_ranges = _block_ranges(query, _blocks(torch.ones_like(opened)))
    possible_BIJ, certain_BIJ = visibility.bounds(
        lambda name: _unsqueeze(query_ranges(name), 2), lambda name: _unsqueeze(key_ranges(name), 1)
    )
    shape = (*_blocks(opened).shape[:2], present_BJC.shape[1])
    full_BIJ = (certain_BIJ & (present_BJC == inside_JC).all(-1).unsqueeze(1)).expand(shape)
    partial_BIJ = (possible_BIJ & present_BJC.any(-1).unsqueeze(1)).expand(shape) & ~full_BIJ
    partial_BIJ[..., 0] |= _blocks(opened).any(-1) & ~full_BIJ[..., 0]
    return BlockMask.from_kv_blocks(
        *_lists(partial_BIJ),
        *_lists(full_BIJ),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(opened.shape[1], present.shape[1]),
    )


def empty_rows(visibility: Visibility, query: Labels, key: Labels, present: Tensor | None) -> Tensor:
    """Which rows see no key at all, boolean `[batch, rows]`, without a tensor of rows x keys.

    The label ranges of blocks of keys decide most rows; the others are looked at a block at a time.
    """
    shape = query["position"].shape
    present = torch.ones_like(key["position"], dtype=torch.bool) if present is None else present
    present_BJC = _blocks(present)
    key_ranges = _block_ranges(key, present_BJC)
    possible_BQJ, certain_BQJ = visibility.bounds(
        lambda name: (query[name].unsqueeze(2), query[name].unsqueeze(2)),
        lambda name: _unsqueeze(key_ranges(name), 1),
    )
    exists_B1J = present_BJC.any(-1).unsqueeze(1)
    empty_BQ = ~(possible_BQJ & exists_B1J).any(-1).expand(shape)
    undecided_BQ = ~empty_BQ & ~(certain_BQJ & exists_B1J).any(-1).expand(shape)
    empty_BQ = empty_BQ.clone()
    for start in range(0, shape[1], BLOCK):
        rows = slice(start, start + BLOCK)
        if bool(undecided_BQ[:, rows].any()):
            some = {name: label[:, rows] for name, label in query.items()}
            empty_BQ[:, rows] = ~visibility.mask(some, key, present).any(-1)
    return empty_BQ


def padded_length(length: int) -> int:
    """One row stays one; else the next power of two from a block upwards: few sizes, few compilations."""
    return 1 if length == 1 else max(BLOCK, 1 << (length - 1).bit_length())


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        with torch._dynamo.config.patch(
            recompile_limit=COMPILED_SHAPES, accumulated_recompile_limit=COMPILED_SHAPES,
            fail_on_recompile_limit_hit=True,
        ):  # fmt: skip
            out: Tensor = compiled(*args, **kwargs)
        return out

    return call


def _per_sample(term: BiasTerm, batch: int, device: torch.device) -> Tensor:
    return term.value_per_sample(device).to(torch.float32).expand(batch).contiguous()


def _pad_labels(labels: Labels, more: int) -> dict[str, Tensor]:
    return {name: F.pad(label, (0, more)) for name, label in labels.items()}


def _pad_rows(x_BRHD: Tensor, rows: int) -> Tensor:
    return F.pad(x_BRHD, (0, 0, 0, 0, 0, rows - x_BRHD.shape[1]))


def _blocks(flag_BR: Tensor) -> Tensor:
    """`[batch, blocks, BLOCK]`, false behind the end."""
    return F.pad(flag_BR, (0, -flag_BR.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))


def _block_ranges(labels: Labels, counts_BJC: Tensor) -> Ranges:
    """Ranges over the rows of each block that count, each end `[batch, blocks]`."""
    return lambda name: lowest_and_highest(_blocks(labels[name]), counts_BJC)


def _unsqueeze(ends: tuple[Tensor, Tensor], dim: int) -> tuple[Tensor, Tensor]:
    return ends[0].unsqueeze(dim), ends[1].unsqueeze(dim)


def _lists(chosen_BIJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of rows reads, and which, the chosen ones first."""
    order = chosen_BIJ.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen_BIJ.sum(-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1).contiguous()
