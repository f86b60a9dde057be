"""Mixtures of experts: a router chooses, for each row, the few feed-forward networks that read it.

The mixtures that are published (Mixtral, Qwen3-MoE, OLMoE, Llama 4, LLaDA-MoE, LLaDA2) differ in what `Experts` says,
and in nothing else. Only the chosen experts are computed.

Shape suffixes: T rows of all samples, E hidden size, X experts, K experts a row, P pairs of a row and one of its
experts (`P = T * K`), F inner size of an expert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyorder.model.feed_forward import FeedForward
from anyorder.utils.annotations import AtMost, check_fields, requirement

Whole = Annotated[int, AtMost(2**31 - 1)]
Real = Annotated[float, AtMost(1e15)]

CHOICES = {
    "score": ("softmax", "sigmoid"),
    "weighted": ("output", "input"),
    "bias": ("none", "choice", "weight"),
}
"""What the named fields of `Experts` may be."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The mixture of experts of a network.

    Attributes:
        number: experts of a layer.
        chosen: experts that read a row.
        width: inner size of an expert.
        score: what makes scores of the router's logits: "softmax" over all experts, or "sigmoid" of each.
        weighted: what an expert's score multiplies: its "output", or its "input" (Llama 4).
        normalise: whether the scores of the chosen experts are divided by their sum.
        scale: factor of the scores.
        bias: what a number for each expert is added to: "none"; the scores by which experts are chosen, "choice"
            (DeepSeek-V3, arXiv 2412.19437, and LLaDA2); or also those that multiply, "weight" (LLaDA-MoE).
        groups: equal groups of experts, of which `kept_groups` with the best two scores, added, are chosen from.
        kept_groups: see `groups`.
        shared_width: inner size of an expert that reads every row; 0: there is none.
        block_length: positions of a block whose rows share their choice (LLaDA2.2); 0: each row chooses alone. Then
            what a row becomes depends on all rows of its block, whoever may see whom.
        block_capacity: experts that the rows of a block choose from, those with the best score of any of them.

    Raises:
        UserError: a field has a value that it cannot have.
    """

    number: Whole
    chosen: Whole
    width: Whole
    score: Literal["softmax", "sigmoid"] = "softmax"
    weighted: Literal["output", "input"] = "output"
    normalise: bool = False
    scale: Real = 1.0
    bias: Literal["none", "choice", "weight"] = "none"
    groups: Whole = 1
    kept_groups: Whole = 1
    shared_width: Whole = 0
    block_length: Whole = 0
    block_capacity: Whole = 0

    def __post_init__(self) -> None:
        require = requirement(self, "experts field {!r}")
        for name, names in CHOICES.items():
            require(name, getattr(self, name) in names, f"choose one of {', '.join(names)}")
        check_fields(self, "experts field {!r}")
        for name in ("number", "chosen", "width", "groups", "kept_groups"):
            require(name, getattr(self, name) > 0, "give a whole number above 0")
        require("chosen", self.chosen <= self.number, f"give at most the number of experts, {self.number}")
        require("scale", self.scale > 0, "give a number above 0")
        require("groups", self.number % self.groups == 0, f"give a divisor of the {self.number} experts")
        require("kept_groups", self.kept_groups <= self.groups, f"give at most the {self.groups} groups")
        in_group = self.number // self.groups
        if self.groups > 1:
            require("groups", in_group > 1, "leave at least two experts in each group")
        kept = self.kept_groups * in_group
        require("chosen", self.chosen <= kept, f"give at most the {kept} experts of the groups that are kept")
        require("shared_width", self.shared_width >= 0, "give a whole number, 0 for none")
        require("block_length", self.block_length >= 0, "give a whole number, 0 for none")
        if self.block_length:
            fits = self.chosen <= self.block_capacity <= self.number
            require("block_capacity", fits, f"give a number from {self.chosen} to {self.number}")
        else:
            require("block_capacity", self.block_capacity == 0, "give block_length too, or leave it out")


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
        score_TX: of every expert, in float32 or wider.
        expert_TK: the chosen experts, best first; for rows of padding the number of experts, which none has.
        weight_TK: what each of them is multiplied by.
    """

    score_TX: Tensor
    expert_TK: Tensor
    weight_TK: Tensor

    @property
    def load(self) -> Tensor:
        """Rows that each expert reads, `[experts]`."""
        experts = self.score_TX.shape[1]
        return torch.bincount(self.expert_TK.flatten(), minlength=experts + 1)[:experts]


class Router(nn.Module):
    """Scores and choice of experts. Computed in float32 or wider: near ties would fall otherwise in half precision."""

    def __init__(self, experts: Experts, hidden_size: int) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.empty(experts.number, hidden_size))
        self.expert_bias = None if experts.bias == "none" else nn.Parameter(torch.zeros(experts.number))

    def forward(self, rows_TE: Tensor, valid_T: Tensor | None, block_T: Tensor | None) -> Routing:
        """Choose experts.

        Args:
            rows_TE: `[rows, hidden]`.
            valid_T: which rows are no padding; None: all.
            block_T: number of each row's block; None where each row chooses alone.
        """
        experts = self.experts
        wide = torch.promote_types(rows_TE.dtype, torch.float32)
        logits_TX = F.linear(rows_TE.to(wide), self.weight.to(wide))
        score_TX = logits_TX.softmax(-1) if experts.score == "softmax" else logits_TX.sigmoid()
        biased_TX = score_TX if self.expert_bias is None else score_TX + self.expert_bias.to(wide)
        choice_TX = biased_TX.detach()
        if experts.kept_groups < experts.groups:
            choice_TX = choice_TX.masked_fill(~self._in_kept_groups(choice_TX), -torch.inf)
        if block_T is not None:
            choice_TX = choice_TX.masked_fill(~self._in_capacity(choice_TX, valid_T, block_T), -torch.inf)
        # Of logits, where they decide alone: a sigmoid rounds large ones to the same 1.
        plain = self.expert_bias is None and experts.kept_groups == experts.groups and block_T is None
        expert_TK = (logits_TX.detach() if plain else choice_TX).topk(experts.chosen, dim=-1).indices
        weight_TK = (biased_TX if experts.bias == "weight" else score_TX).gather(1, expert_TK)
        if experts.normalise:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        weight_TK = weight_TK * experts.scale
        if self.expert_bias is not None and experts.bias == "choice":
            weight_TK = weight_TK + 0 * self.expert_bias.sum()  # so that its gradient is zero, not missing
        if valid_T is not None:
            expert_TK = expert_TK.masked_fill(~valid_T.unsqueeze(1), experts.number)
        return Routing(score_TX, expert_TK, weight_TK)

    def _in_kept_groups(self, choice_TX: Tensor) -> Tensor:
        """Which experts are of the groups that are kept, boolean."""
        best_TG = choice_TX.unflatten(1, (self.experts.groups, -1)).topk(2, dim=-1).values.sum(-1)
        kept_TJ = best_TG.topk(self.experts.kept_groups, dim=-1).indices
        kept_TG = torch.zeros_like(best_TG, dtype=torch.bool).scatter_(1, kept_TJ, True)
        return kept_TG.repeat_interleave(self.experts.number // self.experts.groups, dim=1)

    def _in_capacity(self, choice_TX: Tensor, valid_T: Tensor | None, block_T: Tensor) -> Tensor:
        """Which experts any row of the same block may choose, boolean."""
        numbers, block_T = block_T.unique(return_inverse=True)
        if valid_T is not None:
            choice_TX = choice_TX.masked_fill(~valid_T.unsqueeze(1), -torch.inf)
        best_NX = choice_TX.new_full((len(numbers), self.experts.number), -torch.inf)
        best_NX.scatter_reduce_(0, block_T.unsqueeze(1).expand_as(choice_TX), choice_TX, "amax")
        kept_NJ = best_NX.topk(self.experts.block_capacity, dim=-1).indices
        return torch.zeros_like(best_NX, dtype=torch.bool).scatter_(1, kept_NJ, True)[block_T]


class ExpertWeights(nn.Module):
    """The matrices of all experts of a layer: SwiGLU, gates and then values in the rows of one matrix."""

    def __init__(self, experts: Experts, hidden_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts.number, 2 * experts.width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts.number, hidden_size, experts.width))

    def forward(self, rows_PE: Tensor, expert_P: Tensor) -> Tensor:
        """Each row by its expert, `[pairs, hidden]`; zeros where the expert is the number of experts.

        Args:
            rows_PE: `[pairs, hidden]`.
            expert_P: the expert of each, ascending.
        """
        if torch.compiler.is_compiling() and len(rows_PE) <= FEW:
            return by_gathering(rows_PE, expert_P, self.gate_up_proj, self.down_proj)
        compute = by_groups if _has_groups(rows_PE, self.down_proj.shape[2]) else by_loop
        return compute(rows_PE, expert_P, self.gate_up_proj, self.down_proj)


FEW = 64
"""Rows whose experts' matrices a compiled step reads one by one."""


def _has_groups(rows_PE: Tensor, width: int) -> bool:
    """Whether `grouped_mm` runs here and is not slower than a loop, as it is on a CPU by a tenth.

    On a GPU rows must begin at multiples of 16 bytes.
    """
    fast = rows_PE.is_cuda or torch.compiler.is_compiling()
    return fast and rows_PE.dtype == torch.bfloat16 and rows_PE.shape[1] % 8 == 0 and width % 8 == 0


def by_loop(rows_PE: Tensor, expert_P: Tensor, gate_up_X2FE: Tensor, down_XEF: Tensor) -> Tensor:
    """One expert after another, those alone that have rows."""
    experts, _, width = down_XEF.shape
    parts = rows_PE.split(torch.bincount(expert_P, minlength=experts + 1).tolist())
    gate_up: Sequence[Tensor] | Tensor = gate_up_X2FE
    down: Sequence[Tensor] | Tensor = down_XEF
    if torch.is_grad_enabled():  # the gradient of an index, unlike that of unbind, has the size of all experts
        gate_up, down = gate_up_X2FE.unbind(), down_XEF.unbind()
    used = [expert for expert in range(experts) if len(parts[expert])] or [0]  # so that no gradient is missing
    outs = []
    for expert in used:
        gate_NF = F.silu(F.linear(parts[expert], gate_up[expert][:width]))
        up_NF = F.linear(parts[expert], gate_up[expert][width:])
        inner_NF = gate_NF * up_NF if torch.is_grad_enabled() else gate_NF.mul_(up_NF)
        outs.append(F.linear(inner_NF, down[expert]))
    return torch.cat((*outs, torch.zeros_like(parts[experts])))


def by_groups(rows_PE: Tensor, expert_P: Tensor, gate_up_X2FE: Tensor, down_XEF: Tensor) -> Tensor:
    """All experts in one product of groups of rows."""
    number_X = torch.arange(len(down_XEF), device=expert_P.device)
    ends_X = torch.searchsorted(expert_P, number_X, right=True).to(torch.int32)
    # Rows behind the last group are not written, forwards or backwards, and hold whatever was in memory.
    absent_P1 = (expert_P == len(down_XEF)).unsqueeze(1)
    rows_PE = rows_PE.masked_fill(absent_P1, 0)
    gate_PF, up_PF = F.grouped_mm(rows_PE, gate_up_X2FE.transpose(1, 2), offs=ends_X).chunk(2, -1)
    inner_PF = (F.silu(gate_PF) * up_PF).masked_fill(absent_P1, 0)
    return F.grouped_mm(inner_PF, down_XEF.transpose(1, 2), offs=ends_X).masked_fill(absent_P1, 0)


def by_gathering(rows_PE: Tensor, expert_P: Tensor, gate_up_X2FE: Tensor, down_XEF: Tensor) -> Tensor:
    """The matrices of each row's expert, spelled as `linear.one_row` so that the compiler only reads them."""
    absent_P1 = (expert_P == len(down_XEF)).unsqueeze(1)
    expert_P = expert_P.clamp(max=len(down_XEF) - 1)
    wide = torch.promote_types(rows_PE.dtype, torch.float32)
    gate_PF, up_PF = (gate_up_X2FE[expert_P] * rows_PE.to(wide).unsqueeze(1)).sum(-1).chunk(2, -1)
    inner_PF = (F.silu(gate_PF) * up_PF).to(rows_PE.dtype)
    out_PE = (down_XEF[expert_P] * inner_PF.to(wide).unsqueeze(1)).sum(-1)
    return out_PE.to(rows_PE.dtype).masked_fill(absent_P1, 0)


class MixtureOfExperts(nn.Module):
    """The sum of what the chosen experts make of a row, weighted by their scores, and the shared expert."""

    def __init__(self, experts: Experts, hidden_size: int) -> None:
        super().__init__()
        self.weighted = experts.weighted
        self.gate = Router(experts, hidden_size)
        self.experts = ExpertWeights(experts, hidden_size)
        self.shared_expert = FeedForward(hidden_size, experts.shared_width) if experts.shared_width else None

    def forward(self, rows_BRE: Tensor, valid_BR: Tensor | None = None, block_BR: Tensor | None = None) -> Tensor:
        """Rows `[batch, rows, hidden]`, to the same shape.

        Args:
            rows_BRE: normed rows.
            valid_BR: which of them are no padding, boolean; None: all. Padding reaches no expert but the shared one.
            block_BR: number of each row's block, where rows of a block share their choice.
        """
        rows_TE = rows_BRE.flatten(0, 1)
        valid_T = None if valid_BR is None else valid_BR.flatten()
        routing: Routing = self.gate(rows_TE, valid_T, None if block_BR is None else block_BR.flatten())
        expert_P, order_P = routing.expert_TK.flatten().sort(stable=True)
        rows_PE = rows_TE[order_P // routing.expert_TK.shape[1]]
        weight_P1 = routing.weight_TK.to(rows_TE.dtype).flatten()[order_P].unsqueeze(1)
        if self.weighted == "input":
            out_PE = self.experts(rows_PE * weight_P1, expert_P)
        else:
            out_PE = self.experts(rows_PE, expert_P) * weight_P1
        place_P = order_P.argsort()
        out_BRE = out_PE[place_P].view(*routing.expert_TK.shape, -1).sum(1).view_as(rows_BRE)
        return out_BRE if self.shared_expert is None else out_BRE + self.shared_expert(rows_BRE)


def balance_loss(routing: Routing) -> Tensor:
    """Switch Transformers' load-balancing loss (Fedus et al. 2021, arXiv 2101.03961), as transformers has it.

    Experts x the sum over experts of (rows that chose it, per row) x (its mean score); scores that do not add up to 1
    are divided by their sum. It is the number of experts a row where all are equal; padding does not count.
    """
    score_TX = routing.score_TX
    experts = score_TX.shape[1]
    valid_T1 = (routing.expert_TK[:, :1] < experts).to(score_TX.dtype)
    rows = valid_T1.sum().clamp(min=1)
    mean_X = (score_TX / score_TX.sum(-1, keepdim=True) * valid_T1).sum(0) / rows
    return experts * (routing.load / rows * mean_X).sum()


@contextlib.contextmanager
def routings_of(model: nn.Module) -> Iterator[list[Routing]]:
    """A list that fills with what each router decides, layer by layer of each pass."""
    found: list[Routing] = []
    routers = [module for module in model.modules() if isinstance(module, Router)]
    handles = [router.register_forward_hook(lambda _, given, routing: found.append(routing)) for router in routers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
