"""A network whose texts are the truth: what it draws has a known distribution, its own.

Texts are drawn from stories260K at temperature 1, of a fixed length, beyond the end of a story. The exact
log-probability of each is the teacher's, so for any other network or way of writing q, the mean over texts of
log p - log q is an unbiased estimate of the Kullback-Leibler divergence KL(p || q), whose interval follows from the
spread over texts. It is 0 for q = p and nowhere less.

Shape suffixes: N texts, L length, K drawn gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import anyorder
from anyorder import GroupPlan
from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError
from anyorder.likelihood.exact import left_to_right_log_prob, log_prob
from anyorder.model.llama import Llama
from anyorder.orders.kinds import LeftToRight

MASK, BOS = 0, 1
"""<unk>, which no story has and diffusion takes as its mask, and the token that begins a text."""

BATCH = 64


def load_teacher(data: Path) -> Llama:
    """stories260K, which writes on where a story ends.

    Raises:
        UserError: the folder lacks it.
    """
    file = data / "stories260K" / "stories260K.bin"
    if not file.is_file():
        raise UserError(f"data is {str(data)!r}, which lacks stories260K/stories260K.bin: give the folder that has it.")
    model = anyorder.load(file, device="cpu", dtype="float32")[0]
    model.config = model.config.replace(eos_token_ids=())
    return model


def draw(teacher: Llama, count: int, length: int, seed: int) -> Tensor:
    """Draw texts: int64 `[count, length]`, the first token of each is the one that begins a text."""
    out = anyorder.generate(
        teacher, None, [[BOS]] * count, max_new_tokens=length - 1, temperature=1.0, seed=seed, batch_size=512
    )
    return torch.tensor(out.sequences)


def in_parts(ids_NL: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """`score` of some texts at a time, joined."""
    return torch.cat([score(part) for part in ids_NL.split(BATCH)]).double()


def true_log_prob(teacher: Llama, ids_NL: Tensor) -> Tensor:
    """log p of each text but its first token, in nats: `[N]`."""
    plan = GroupPlan.sequential([ids_NL.shape[1]], given=[1])
    return in_parts(ids_NL, lambda part: left_to_right_log_prob(teacher, part, plan.select([0] * len(part))).total)


def distances(teacher: Llama, ids_NL: Tensor, log_q_N: Tensor) -> list[float]:
    """log p - log q of each text, in nats per token, whose mean is the divergence."""
    return ((true_log_prob(teacher, ids_NL) - log_q_N) / (ids_NL.shape[1] - 1)).tolist()


@dataclass(frozen=True)
class Gap:
    """Tokens in the middle of a text, to be filled.

    Attributes:
        start, size: where they are.
    """

    start: int
    size: int

    def plan(self, length: int, count: int) -> GroupPlan:
        """All else is given, and the gap is written from left to right."""
        inside = [self.start <= at < self.start + self.size for at in range(length)]
        plan = GroupPlan.from_masks([[not mark for mark in inside]], [inside], LeftToRight())
        return plan.select([0] * count)

    def log_q(self, model: Llama, ids_NL: Tensor) -> Tensor:
        """log q(gap | both sides) of a network that writes in any order: `[N]`."""
        return in_parts(ids_NL, lambda part: log_prob(model, part, self.plan(part.shape[1], len(part))).total)

    def drawn(self, model: Llama, ids_NL: Tensor, draws: int, seed: int) -> Tensor:
        """Texts whose gap a network wrote from both sides: `[N, K, L]`."""
        canvases = ids_NL.clone()
        canvases[:, self.start : self.start + self.size] = BLANK
        out = anyorder.generate(
            model, None, canvases.tolist(), order=LeftToRight(), num_samples=draws, temperature=1.0, seed=seed,
            batch_size=128,
        )  # fmt: skip
        return torch.tensor(out.sequences).view(len(ids_NL), draws, -1)

    def drawn_from_the_left(self, teacher: Llama, ids_NL: Tensor, draws: int, seed: int) -> Tensor:
        """Texts whose gap the teacher wrote from the left side alone: `[N, K, L]`."""
        out = anyorder.generate(
            teacher, None, ids_NL[:, : self.start].tolist(), max_new_tokens=self.size, num_samples=draws,
            temperature=1.0, seed=seed, batch_size=128,
        )  # fmt: skip
        begun_NKL = torch.tensor(out.sequences).view(len(ids_NL), draws, -1)
        right_NKL = ids_NL[:, None, self.start + self.size :].expand(-1, draws, -1)
        return torch.cat((begun_NKL, right_NKL), 2)


def evidence_bounds(
    teacher: Llama, proposal: Llama, gap: Gap, ids_NL: Tensor, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Bounds of log p(all but the gap), in nats: `[N]` each.

    Half of the gaps are drawn by a network from both sides, half by the teacher from the left, so q is the mean of
    both. The mean of p(text) / q(gap) is p(all but the gap); its logarithm is, on average, too low. With the true gap,
    a draw from the posterior, among the draws it is on average too high (Grosse et al. 2015, arXiv 1511.02543). What
    lies between is what sampling leaves open.

    Args:
        teacher: has the true distribution.
        proposal: writes in any order.
        gap: where it is.
        ids_NL: int64 `[texts, length]`, drawn from the teacher.
        draws: gaps drawn for each text, an even number.
        seed: decides them.
    """

    def log_weight(texts_NL: Tensor) -> Tensor:
        from_both_N = gap.log_q(proposal, texts_NL)
        begun_N = true_log_prob(teacher, texts_NL[:, : gap.start + gap.size])
        from_left_N = begun_N - true_log_prob(teacher, texts_NL[:, : gap.start])
        return true_log_prob(teacher, texts_NL) - torch.logaddexp(from_both_N, from_left_N) + math.log(2)

    drawn_NKL = torch.cat(
        (
            gap.drawn(proposal, ids_NL, draws // 2, seed),
            gap.drawn_from_the_left(teacher, ids_NL, draws // 2, seed),
        ),
        1,
    )
    weight_NK = log_weight(drawn_NKL.flatten(0, 1)).view(len(ids_NL), draws)
    upper_NK = torch.cat((weight_NK[:, 1:], log_weight(ids_NL)[:, None]), 1)
    return weight_NK.logsumexp(1) - math.log(draws), upper_NK.logsumexp(1) - math.log(draws)
