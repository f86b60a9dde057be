"""How probable a network that writes in any order finds texts: exact log-probabilities, in one pass.

With a plan, a text has one probability: the product, group by group, of the probabilities of its tokens given the
groups before. Tokens of a group are independent of each other, so a plan of larger groups has another probability than
one that writes them one by one, each exact for itself.

Shape suffixes: B texts, L length, K query rows, R = L + K rows, E hidden size, N predicted tokens of all texts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anyorder.decoding.checks import check_token_ids
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import refuse_unless_causal
from anyorder.orders.kinds import LeftToRight, Order
from anyorder.orders.plan import GroupPlan
from anyorder.utils.annotations import checked
from anyorder.utils.numbers import check_positive
from anyorder.utils.ragged import log_probs_of
from anyorder.utils.reprs import counted
from anyorder.utils.token_lists import Ids, token_lists
from anyorder.visibility import causal, groups


@dataclass(frozen=True, kw_only=True, eq=False)
class LogProb:
    """Natural logarithms of probabilities.

    Attributes:
        token_BL: of each token that is predicted, given what its plan writes before it; 0 for all others.
        predicted_BL: which tokens are.
    """

    token_BL: Tensor
    predicted_BL: Tensor

    def __repr__(self) -> str:
        totals = ", ".join(f"{total:.2f}" for total in self.total[:3].tolist())
        more = ", ..." if len(self.token_BL) > 3 else ""
        tokens = counted(int(self.predicted_BL.sum()), "token")
        texts = counted(len(self.token_BL), "text")
        return (
            f"{type(self).__name__} of {texts}: {tokens}, total [{totals}{more}] nats, perplexity {self.perplexity:.4g}"
        )

    @property
    def total(self) -> Tensor:
        """Of all that is predicted of each text, `[batch]`."""
        return self.token_BL.sum(1)

    @property
    def per_token(self) -> Tensor:
        """The same in the mean over its tokens."""
        return self.total / self.predicted_BL.sum(1)

    @property
    def perplexity(self) -> float:
        """Of all predicted tokens of all texts."""
        return math.exp(-float(self.token_BL.sum() / self.predicted_BL.sum()))


@torch.no_grad()
@checked()
def log_prob(model: Llama, ids: Ids, plan: GroupPlan) -> LogProb:
    """Compute the exact log-probability of texts under a plan, in nats, per token and in sum.

    Args:
        model: a network that writes in any order.
        ids: token ids `[batch, length]`, those of one text, or a list for each text, of any lengths; padded as the
            plan is, or what a tokenizer returns.
        plan: for these texts; what it has as given is not scored, and rows of images count as given.

    Raises:
        UserError: the network has no query rows, or ids and plan do not fit each other or the network.
    """
    model.config.mode("any-order")
    ids_BL = _padded(model, ids, plan.valid_BL).to(model.device)
    plan = _without_images(model, ids_BL, plan.to(model.device))
    rows = plan.rows()
    views = model.prepare(groups(), rows.labels, n_keys=rows.n_keys, valid=rows.valid_BR)
    position_BK = rows.labels["position"][:, rows.n_keys :]
    hidden_BKE = model.two_streams(ids_BL.gather(1, rows.content_BL), position_BK, views)[:, rows.n_keys :]
    valid_BK = rows.valid_BR[:, rows.n_keys :]
    target_N = ids_BL.gather(1, rows.query_BK)[valid_BK]
    sample_N = valid_BK.nonzero()[:, 0]
    nats_N = log_probs_of(model.logits(hidden_BKE[valid_BK]), target_N)
    return _placed(nats_N, sample_N, rows.query_BK[valid_BK], plan.predicted)


@torch.no_grad()
def left_to_right_log_prob(model: Llama, ids: Ids, plan: GroupPlan) -> LogProb:
    """Compute the same from left to right by the network's logits for the next token, without query rows.

    Args:
        model: a network that writes from left to right.
        ids: as in `log_prob`.
        plan: its predicted tokens are scored, each given all tokens before it, whatever its ranks are.

    Raises:
        UserError: the network does not write from left to right, a first token is to be predicted, or ids and plan do
            not fit each other or the network.
    """
    refuse_unless_causal(model.config.modes, model.config.default_mode)
    ids_BL = _padded(model, ids, plan.valid_BL).to(model.device)
    plan = _without_images(model, ids_BL, plan.to(model.device))
    if bool((plan.predicted & (plan.position == 0)).any()):
        raise UserError(
            "the first token is to be predicted, but from left to right nothing stands before it: put the token that "
            "begins a text before it, and mark that as given."
        )
    hidden_BLE = model.hidden(ids_BL, model.prepare(causal(), {"position": plan.position}, valid=plan.valid_BL))
    sample_N, at_N = plan.predicted.nonzero(as_tuple=True)
    # The row of the token before; padding may lie between.
    row_BL = torch.where(plan.valid_BL, torch.arange(ids_BL.shape[1], device=ids_BL.device), -1).cummax(1).values
    logits_NV = model.logits(hidden_BLE[sample_N, row_BL[sample_N, at_N - 1]])
    nats_N = log_probs_of(logits_NV, ids_BL[sample_N, at_N])
    return _placed(nats_N, sample_N, at_N, plan.predicted)


def gap_log_prob(
    model: Llama,
    texts: Sequence[Sequence[int]],
    gaps: Sequence[Sequence[int]],
    *,
    order: Order = LeftToRight(),  # noqa: B008 (frozen)
    sides: Literal["both", "left"] = "both",
    seed: int = 0,
) -> LogProb:
    """Compute the exact log-probability of gaps, given the tokens around them.

    Args:
        model: a network that writes in any order.
        texts: token ids of each text, whole.
        gaps: positions of the tokens in the gaps of each text.
        order: in which they are written.
        sides: "left" leaves out the tokens behind the first gap that are in no gap.
        seed: decides random orders, with the number of the text.

    Raises:
        UserError: positions that are no gap of their text, or see `log_prob`.
    """
    if sides not in ("both", "left"):
        raise UserError(f"sides is {sides!r}: give 'both' or 'left'.")
    if len(texts) != len(gaps):
        raise UserError(f"there are {len(texts)} texts and gaps for {len(gaps)}: give the positions of each.")
    given, predicted = [], []
    for number, (text, gap) in enumerate(zip(texts, gaps, strict=True)):
        if not gap or len(set(gap)) < len(gap) or not all(0 <= at < len(text) for at in gap):
            remedy = f"give different positions from 0 to {len(text) - 1}, at least one"
            raise UserError(f"the gap of text {number} is {list(gap)}: {remedy}.")
        end = min(gap) if sides == "left" else len(text)
        given.append([at not in gap and at < end for at in range(len(text))])
        predicted.append([at in gap for at in range(len(text))])
    plan = GroupPlan.from_masks(given, predicted, order, seed)
    # What is left out counts as padding, and positions do not count that: later ones would move.
    if sides == "left" and any(max(gap) - min(gap) >= len(gap) for gap in gaps):
        raise UserError("sides is 'left' with several gaps in a text: give one gap, or both sides.")
    width = plan.valid_BL.shape[1]
    return log_prob(model, [[*text, *[0] * (width - len(text))] for text in texts], plan)


@dataclass(frozen=True, kw_only=True)
class OverOrders:
    """Log-probabilities of one text under several plans.

    Attributes:
        log_probs: in nats, one for each plan.
    """

    log_probs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the plans, in nats."""
        return statistics.fmean(self.log_probs)

    @property
    def deviation(self) -> float:
        """The standard deviation (of the sample; 0 for one plan), in nats: how much the order matters."""
        return statistics.stdev(self.log_probs) if len(self.log_probs) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean, in nats."""
        return self.deviation / math.sqrt(len(self.log_probs))


def over_orders(model: Llama, ids: Ids, plan_of: Callable[[int], GroupPlan], orders: int) -> list[OverOrders]:
    """Compute the mean over several plans, with its spread, for each text.

    Args:
        model, ids: as in `log_prob`.
        plan_of: the plan of each number, such as `lambda seed: GroupPlan.random([20], seed=seed)`.
        orders: number of plans.

    Raises:
        UserError: `orders` is not above 0, or see `log_prob`.
    """
    check_positive("orders", orders)
    of_each_OB = torch.stack([log_prob(model, ids, plan_of(number)).total.double() for number in range(orders)])
    return [OverOrders(log_probs=tuple(of_text)) for of_text in of_each_OB.T.tolist()]


def _padded(model: Llama, ids: Ids, valid_BL: Tensor) -> Tensor:
    """Return ids in the plan's places, 0 where there is padding."""
    rows = token_lists(ids)
    batch, length = valid_BL.shape
    if len(rows) != batch:
        raise UserError(f"the plan is for {batch} texts, but there are {len(rows)}: plan each of them.")
    counts = valid_BL.sum(1).tolist()
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if len(row) not in (count, length):
            raise UserError(
                f"text {number} has {len(row)} tokens, but its plan is for {count}: make a plan of its length."
            )
    padded_BL = torch.zeros((batch, length), dtype=torch.int64)
    for number, row in enumerate(rows):
        where = valid_BL[number].cpu() if len(row) < length else slice(None)
        padded_BL[number, where] = torch.tensor(row, dtype=torch.int64)
    for number, (padded_L, valid_L) in enumerate(zip(padded_BL, valid_BL.cpu(), strict=True)):
        check_token_ids(model.config, padded_L[valid_L].tolist(), f"text {number}")
    return padded_BL.masked_fill(~valid_BL.cpu(), 0)


def _without_images(model: Llama, ids_BL: Tensor, plan: GroupPlan) -> GroupPlan:
    """The plan with rows of images among the last of what is given."""
    image_BL = (ids_BL >= model.config.vocab_size) & plan.predicted
    if not bool(image_BL.any()):
        return plan
    rank_BL, valid_BL = plan.rank_BL, plan.valid_BL
    first_B1 = rank_BL.amin(1, keepdim=True)
    last_B1 = torch.where(plan.given_BL, rank_BL, first_B1 - 1).amax(1, keepdim=True)
    rank_BL = torch.where(image_BL, last_B1, rank_BL)
    return GroupPlan(rank_BL=rank_BL, given_BL=plan.given_BL | image_BL, valid_BL=valid_BL)


def _placed(nats_N: Tensor, sample_N: Tensor, at_N: Tensor, predicted_BL: Tensor) -> LogProb:
    token_BL = nats_N.new_zeros(predicted_BL.shape)
    token_BL[sample_N, at_N] = nats_N
    return LogProb(token_BL=token_BL, predicted_BL=predicted_BL)
