"""Writing in any order: one pass per group, over the group just written and the positions of the next one.

What was written in the last pass goes in as content rows, which are read and kept; the positions to be written next go
in as query rows, which offer no keys (`anyorder.visibility.groups`). So a pass both reads a group and predicts the next
one, and a text of g groups takes g passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from anyorder.decoding.any_order.reader import TwoStreamReader
from anyorder.decoding.any_order.text import AnyOrderText, Content
from anyorder.decoding.canvas import BLANK, PLAIN, CanvasLayout, check_canvases
from anyorder.decoding.loop import by_sampling, decode
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop
from anyorder.errors import UserError
from anyorder.orders.by_name import AnyOrder
from anyorder.orders.kinds import LeftToRight, MostConfident
from anyorder.orders.plan import GroupPlan

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def any_order_steps(
    model: Llama,
    canvases: Sequence[Sequence[int]],
    order: AnyOrder,
    *,
    sampling: Sampling,
    sample_ids: Sequence[int],
    stop: Stop | None = None,
    use_cache: bool = True,
    layout: CanvasLayout = PLAIN,
) -> Iterator[Step]:
    """Fill canvases; yield each step as soon as it is taken. Errors of the caller are raised at once.

    The tokens of a group are drawn independently of each other. A text that ends in blanks ends with an end token; the
    positions behind it are not written.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        canvases: token ids with `BLANK` where a token is to be written, of any lengths.
        order: a plan for these texts, which gives the tokens that the canvases give; an order of the positions to be
            written, where all given tokens are one group; or the network's own choice.
        sampling: how a token is chosen. Its seed decides random orders, too.
        sample_ids: number of each canvas, which decides its random draws.
        stop: called with the text up to the first blank, whenever that has changed; not for texts with gaps.
        use_cache: False reads all again in each pass (slow reference path).
        layout: of the canvases.

    Raises:
        UserError: the network has no query rows, a canvas cannot be filled, or the plan is one for other texts.
    """
    texts = texts_of(model, canvases, order, sampling, sample_ids, layout.lengths)
    reader = TwoStreamReader(model, texts, use_cache=use_cache, layout=layout)
    return decode(texts, reader, by_sampling(sampling), stop)


def plan_for(canvases: Sequence[Sequence[int]], order: AnyOrder, seed: int, sample_ids: Sequence[int]) -> GroupPlan:
    """Return the plan that an order makes for canvases; check a plan against them.

    Raises:
        UserError: the plan is for other texts.
    """
    given = [[token_id != BLANK for token_id in canvas] for canvas in canvases]
    if not isinstance(order, GroupPlan):
        predicted = [[not is_given for is_given in row] for row in given]
        fixed = LeftToRight() if isinstance(order, MostConfident) else order
        return GroupPlan.from_masks(given, predicted, fixed, seed, sample_ids)
    if len(order.rank_BL) != len(canvases):
        raise UserError(
            f"the plan is for {len(order.rank_BL)} texts, but there are {len(canvases)}: plan each of them."
        )
    for sample, (sample_id, is_given) in enumerate(zip(sample_ids, given, strict=True)):
        planned = order.given_BL[sample, order.valid_BL[sample]].tolist()
        if len(planned) != len(is_given):
            remedy = "make a plan of that length, or change max_new_tokens"
            raise UserError(
                f"the plan is for a text of {len(planned)} tokens, but prompt {sample_id} has {len(is_given)} with "
                f"those to be written: {remedy}."
            )
        if planned != is_given:
            at = [one == other for one, other in zip(planned, is_given, strict=True)].index(False)
            is_so, remedy = ("is to be written", "leave it out of") if planned[at] else ("is given", "mark it in")
            raise UserError(
                f"token {at} of prompt {sample_id} {is_so}, but not in the plan: {remedy} the plan's given tokens."
            )
    return order


def texts_of(
    model: Llama, canvases: Sequence[Sequence[int]], order: AnyOrder, sampling: Sampling, sample_ids: Sequence[int],
    lengths: Sequence[int] | None = None,
) -> list[AnyOrderText]:  # fmt: skip
    """Return canvases with the order in which each is filled; `lengths` as `check_canvases` takes them.

    Raises:
        UserError: see `any_order_steps`.
    """
    model.config.mode("any-order")
    check_canvases(model.config, canvases, sample_ids, lengths)
    plan = plan_for(canvases, order, sampling.seed, sample_ids)
    size = order.size if isinstance(order, MostConfident) else None
    texts = []
    rngs = sampling.generators(sample_ids)
    for sample, (sample_id, canvas) in enumerate(zip(sample_ids, canvases, strict=True)):
        position_L = plan.position[sample].tolist()
        groups = [[position_L[index] for index in group] for group in plan.steps[sample]]
        given = _given(canvas, plan.rank_BL[sample, plan.valid_BL[sample]].tolist())
        texts.append(AnyOrderText(sample_id, canvas, rngs[sample], model.config.eos_token_ids, groups, given, size))
    return texts


def _given(canvas: Sequence[int], ranks: Sequence[int]) -> list[Content]:
    """Return the given tokens by rank, which ends at -1."""
    given = sorted((rank, at) for at, rank in enumerate(ranks) if canvas[at] != BLANK)
    highest = given[-1][0] if given else 0
    return [Content(at, canvas[at], rank - highest - 1) for rank, at in given]
