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
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from anyorder.attention.backends import Backend
from anyorder.attention.hints import lowest_and_highest
from anyorder.attention.mask import AttentionMask, BiasTerm, Request
from anyorder.visibility import Labels, Ranges, Visibility

BLOCK = 128
"""Rows, and keys, of one block."""

COMPILED_SHAPES = 64
"""Distinct shapes and rules that one process may compile before FlexAttention refuses more."""


@dataclass(frozen=True, kw_only=True)
class FlexMask(AttentionMask):
    """`flex_attention` of PyTorch, compiled, for rows and keys padded to the sizes that the mask was built for.

    Attributes:
        functions: the rule, which reads this mask while it attends.
        request: with padded labels and a tensor `present`.
        opened: padded rows and rows without a visible key, boolean; they see every key of the blocks that they read.
        blocks: which blocks of keys each block of rows reads.
        bias: values `[batch]` of the bias terms.
    """

    functions: FlexFunctions
    request: Request
    opened: Tensor
    blocks: BlockMask
    bias: tuple[Tensor, ...]

    @classmethod
    def of(cls, request: Request) -> FlexMask:
        """Compile a request."""
        rows, keys = request.sizes
        more_rows, more_keys = padded_length(rows) - rows, padded_length(keys) - keys
        empty_BQ = empty_rows(request)
        opened = F.pad(empty_BQ, (0, more_rows), value=True)
        padded = replace(
            request,
            query={name: F.pad(label, (0, more_rows)) for name, label in request.query.items()},
            key={name: F.pad(label, (0, more_keys)) for name, label in request.key.items()},
            present=F.pad(_present(request), (0, more_keys)),
        )
        functions = flex_functions(request.visibility, tuple(term.relation for term in request.bias))
        return cls(
            functions=functions,
            request=padded,
            opened=opened,
            blocks=block_mask(padded, opened, functions.mask),
            bias=tuple(_per_sample(term, len(opened), opened.device) for term in request.bias),
            empty_BQ=empty_BQ if bool(empty_BQ.any()) else None,
        )

    def attend(self, q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
        self.functions.plan = self
        rows, keys = self.request.sizes
        out_BHQD = _compiled_flex_attention()(
            _pad_rows(q_BQHD, rows).transpose(1, 2),
            _pad_rows(k_BKGD, keys).transpose(1, 2),
            _pad_rows(v_BKGD, keys).transpose(1, 2),
            score_mod=self.functions.score if self.bias else None,
            block_mask=self.blocks,
            scale=scale,
            enable_gqa=q_BQHD.shape[2] != k_BKGD.shape[2],
        )
        return out_BHQD.transpose(1, 2)[:, : q_BQHD.shape[1]]


FLEX = Backend(
    name="flex", compile=FlexMask.of, backward=("cuda",), dtypes=(torch.float16, torch.bfloat16, torch.float32),
    lse=False,
)  # fmt: skip


class FlexFunctions:
    """The `mask_mod` and `score_mod` of one rule; `plan` is set right before each call."""

    def __init__(self, visibility: Visibility, relations: tuple[Visibility, ...]) -> None:
        self.visibility = visibility
        self.relations = relations
        self.plan: FlexMask | None = None

    def mask(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether row q of sample b sees key k; empty rows see every key of the blocks they read."""
        assert self.plan is not None
        assert self.plan.request.present is not None
        seen = self._holds(self.visibility, b, q, k)
        return (seen & self.plan.request.present[b, k]) | self.plan.opened[b, q]

    def score(self, score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The score with the bias of every relation that holds between row q and key k."""
        assert self.plan is not None
        for relation, value in zip(self.relations, self.plan.bias, strict=True):
            score = score + torch.where(self._holds(relation, b, q, k), value[b], 0.0)
        return score

    def _holds(self, relation: Visibility, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert self.plan is not None
        query, key = self.plan.request.query, self.plan.request.key
        return relation.sees(lambda name: query[name][b, q], lambda name: key[name][b, k])


flex_functions = functools.cache(FlexFunctions)
"""The functions of a rule: the same objects at every call, since new ones would be compiled anew."""


def block_mask(request: Request, opened: Tensor, mask_mod: Callable[..., Tensor]) -> BlockMask:
    """Which blocks of keys each block of rows reads in full, in part, or not at all.

    Args:
        request: the rule and the labels.
        opened: rows without a visible key, boolean `[batch, rows]`; they read the first block of keys.
        mask_mod: the exact rule, applied within blocks read in part.
    """
    present = _present(request)
    present_BJC = _blocks(present)
    inside_JC = _blocks(torch.ones_like(present[:1]))[0]  # false behind the end of the last block
    query_ranges = _block_ranges(request.query, _blocks(torch.ones_like(opened)), dim=2)
    possible_BIJ, certain_BIJ = request.visibility.bounds(query_ranges, _block_ranges(request.key, present_BJC, dim=1))
    shape = (*_blocks(opened).shape[:2], present_BJC.shape[1])
    full_BIJ = (certain_BIJ & (present_BJC == inside_JC).all(-1).unsqueeze(1)).expand(shape)
    partial_BIJ = (possible_BIJ & present_BJC.any(-1).unsqueeze(1)).expand(shape) & ~full_BIJ
    partial_BIJ[..., 0] |= _blocks(opened).any(-1) & ~full_BIJ[..., 0]
    return BlockMask.from_kv_blocks(
        *_lists(partial_BIJ),
        *_lists(full_BIJ),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=request.sizes,
    )


def empty_rows(request: Request) -> Tensor:
    """Which rows have no visible key, boolean `[batch, rows]`, without a tensor of rows x keys.

    The label ranges of blocks of keys decide most rows; the others are computed a block at a time.
    """
    query, key = request.query, request.key
    shape = query["position"].shape
    present_BJC = _blocks(_present(request))
    possible_BQJ, certain_BQJ = request.visibility.bounds(
        lambda name: (query[name].unsqueeze(2), query[name].unsqueeze(2)), _block_ranges(key, present_BJC, dim=1)
    )
    exists_B1J = present_BJC.any(-1).unsqueeze(1)
    empty_BQ = ~(possible_BQJ & exists_B1J).any(-1).expand(shape)
    undecided_BQ = ~empty_BQ & ~(certain_BQJ & exists_B1J).any(-1).expand(shape)
    empty_BQ = empty_BQ.clone()
    for start in range(0, shape[1], BLOCK):
        rows = slice(start, start + BLOCK)
        if bool(undecided_BQ[:, rows].any()):
            some = {name: label[:, rows] for name, label in query.items()}
            empty_BQ[:, rows] = ~request.visibility.mask(some, key, request.present).any(-1)
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
    value_B = term.value_per_sample(device).to(torch.float32).expand(batch)
    # Copied in any case: a batch of one counts as contiguous with any stride, which the compiled kernel reads wrongly.
    return value_B.clone(memory_format=torch.contiguous_format)


def _present(request: Request) -> Tensor:
    """Which keys exist, boolean `[batch, keys]`."""
    return torch.ones_like(request.key["position"], dtype=torch.bool) if request.present is None else request.present


def _pad_rows(x_BRHD: Tensor, rows: int) -> Tensor:
    return F.pad(x_BRHD, (0, 0, 0, 0, 0, rows - x_BRHD.shape[1]))


def _blocks(flag_BR: Tensor) -> Tensor:
    """`[batch, blocks, BLOCK]`, false behind the end."""
    return F.pad(flag_BR, (0, -flag_BR.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))


def _block_ranges(labels: Labels, counts_BJC: Tensor, dim: int) -> Ranges:
    """Ranges over the rows of each block that count, each end `[batch, blocks]` with a dimension of one at `dim`."""

    def ranges(name: str) -> tuple[Tensor, Tensor]:
        low, high = lowest_and_highest(_blocks(labels[name]), counts_BJC)
        return low.unsqueeze(dim), high.unsqueeze(dim)

    return ranges


def _lists(chosen_BIJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of rows reads, and which, the chosen ones first."""
    order = chosen_BIJ.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen_BIJ.sum(-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1).contiguous()
