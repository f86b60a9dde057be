"""Writing in any order: one pass per group, over the group just written and the places of the next one.

What was written in the last pass goes in as content rows, which are read and kept; the places to be written next go in
as query rows, which only look (`anyorder.visibility.groups`). So a pass both reads a group and predicts the next one,
and a text of g groups takes g passes.

Shape suffixes: N places asked about in all texts, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from anyorder.decoding.any_order.reader import Content, Query, Reader
from anyorder.decoding.canvas import BLANK, check_canvases
from anyorder.decoding.checks import checked_log_prob
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop, StopReason, Written
from anyorder.errors import UserError
from anyorder.orders.by_name import AnyOrder
from anyorder.orders.kinds import LeftToRight, MostConfident
from anyorder.orders.plan import GroupPlan

if TYPE_CHECKING:
    from anyorder.decoding.fusion.canvases import FusedCanvases
    from anyorder.model.llama import Llama


def any_order_steps(
    model: Llama,
    canvases: Sequence[Sequence[int]],
    order: AnyOrder,
    *,
    sampling: Sampling,
    rows: Sequence[int],
    stop: Stop | None = None,
    use_cache: bool = True,
    fused: FusedCanvases | None = None,
) -> Iterator[Step]:
    """Fills canvases, each step as soon as it is taken; mistakes are raised at once.

    The tokens of a group are drawn independently of each other. A text that nothing given stands behind ends with an
    end token: what is left behind it is not written.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        canvases: token ids with `BLANK` where a token is to be written, of any lengths.
        order: a plan for these texts, in which they are given what they are given in the canvases; an order of the
            places to be written, where all that is given is one group; or the network's own choice.
        sampling: how a token is chosen. Its seed decides random orders, too.
        rows: number of each canvas, which decides its random draws.
        stop: asked about the text up to the first place that is left, where that grew and nothing given stands behind.
        use_cache: False reads all again in each pass: the slow, obvious twin.
        fused: where phrasings of questions stand in these canvases; None where there are none.

    Raises:
        UserError: the network has no query rows, a canvas cannot be filled, or the plan is one for other texts.
    """
    lengths = None if fused is None else fused.lengths
    texts = texts_of(model, canvases, order, sampling, rows, lengths)
    return _steps(model, texts, sampling, stop, use_cache, fused)


def plan_for(canvases: Sequence[Sequence[int]], order: AnyOrder, seed: int, rows: Sequence[int]) -> GroupPlan:
    """The plan that an order makes for canvases; a plan is checked against them.

    Raises:
        UserError: the plan is for other texts.
    """
    given = [[token_id != BLANK for token_id in canvas] for canvas in canvases]
    if not isinstance(order, GroupPlan):
        predicted = [[not is_given for is_given in row] for row in given]
        fixed = LeftToRight() if isinstance(order, MostConfident) else order
        return GroupPlan.from_masks(given, predicted, fixed, seed, rows)
    if len(order.rank_BL) != len(canvases):
        raise UserError(
            f"the plan is for {len(order.rank_BL)} texts, but there are {len(canvases)}: plan each of them."
        )
    for sample, (row, wanted) in enumerate(zip(rows, given, strict=True)):
        planned = order.given_BL[sample, order.valid_BL[sample]].tolist()
        if len(planned) != len(wanted):
            remedy = "make a plan of that length, or change max_new_tokens"
            raise UserError(
                f"the plan is for a text of {len(planned)} tokens, but prompt {row} has {len(wanted)} with those to be "
                f"written: {remedy}."
            )
        if planned != wanted:
            at = [one == other for one, other in zip(planned, wanted, strict=True)].index(False)
            is_so, remedy = ("is to be written", "leave it out of") if planned[at] else ("is given", "mark it in")
            raise UserError(
                f"token {at} of prompt {row} {is_so}, but not in the plan: {remedy} the plan's given tokens."
            )
    return order


def texts_of(
    model: Llama, canvases: Sequence[Sequence[int]], order: AnyOrder, sampling: Sampling, rows: Sequence[int],
    lengths: Sequence[int] | None = None,
) -> list[Text]:  # fmt: skip
    """Canvases with the order in which each is filled; `lengths` as `check_canvases` takes them.

    Raises:
        UserError: see `any_order_steps`.
    """
    model.config.way("any-order")
    check_canvases(model.config, canvases, rows, lengths)
    plan = plan_for(canvases, order, sampling.seed, rows)
    size = order.size if isinstance(order, MostConfident) else None
    generators = sampling.generators(rows)
    return [
        Text(number, canvas, plan, sample, size, generators[sample])
        for sample, (number, canvas) in enumerate(zip(rows, canvases, strict=True))
    ]


class Choice(NamedTuple):
    """A token for a place, and how sure the network is of it."""

    position: int
    token_id: int
    log_prob: float


class Text:
    """One canvas while it is filled.

    Attributes:
        number: among all prompts.
        tokens: `BLANK` where none is written yet.
        groups: places that are left, in the order of writing.
        fresh: tokens that have not been read yet, by rank. What is given has ranks below 0, and each group that is
            written the next one.
        turn: groups that have been written.
        size: of a group that the network chooses among all places; None where the order is fixed.
        generator: of its random numbers.
    """

    def __init__(
        self, number: int, canvas: Sequence[int], plan: GroupPlan, sample: int, size: int | None,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.number = number
        self.tokens = list(canvas)
        self.turn = 0
        self.size = size
        self.generator = generator
        position_L = plan.position[sample].tolist()
        self.groups = [[position_L[index] for index in group] for group in plan.steps[sample]]
        ranks = plan.rank_BL[sample, plan.valid_BL[sample]].tolist()
        given = [(ranks[at], at) for at, token_id in enumerate(canvas) if token_id != BLANK]
        highest = max(given)[0] if given else 0
        self.fresh = [Content(at, canvas[at], rank - highest - 1) for rank, at in sorted(given)]
        self._first = self.tokens.index(BLANK)
        self._continues = all(token_id == BLANK for token_id in canvas[self._first :])
        self._asked = 0

    @property
    def history(self) -> list[int]:
        """The tokens that are there."""
        return [token_id for token_id in self.tokens if token_id != BLANK]

    @property
    def queries(self) -> list[Query]:
        """What the next pass asks about."""
        groups = self.groups[:1] if self.size is None else self.groups
        return [Query(position, self.turn) for group in groups for position in group]

    def write(self, choices: Sequence[Choice], end_token_ids: Sequence[int]) -> list[Choice]:
        """Writes those of the choices that stand as one group, and forgets the places behind an end token."""
        standing = list(choices)
        if self.size is not None:
            standing = sorted(sorted(choices, key=lambda choice: -choice.log_prob)[: self.size])
        self.fresh = [Content(position, token_id, self.turn) for position, token_id, _ in standing]
        self.turn += bool(standing)
        for position, token_id, _ in standing:
            self.tokens[position] = token_id
        ends = [at for at in range(self._first, len(self.tokens)) if self.tokens[at] in end_token_ids]
        last = ends[0] if ends and self._continues else len(self.tokens)
        left = [[at for at in group if self.tokens[at] == BLANK and at < last] for group in self.groups]
        self.groups = [group for group in left if group]
        return standing

    def why_complete(self, end_token_ids: Sequence[int], stop: Stop | None) -> StopReason | None:
        """Why nothing more is to be written, if so; what was left is forgotten then."""
        text = self.tokens[self._first :]
        text = text[: text.index(BLANK)] if BLANK in text else text
        ended = self._continues and any(token_id in end_token_ids for token_id in text)
        text = list(itertools.takewhile(lambda token_id: token_id not in end_token_ids, text))
        stopped = False
        if stop is not None and self._continues and len(text) > self._asked:
            self._asked = len(text)
            stopped = stop(self.number, text)
        if self.groups and not stopped:
            return None
        self.groups, self.fresh = [], []
        return "stop" if stopped else "end" if ended else "length"


@torch.no_grad()
def _steps(
    model: Llama, texts: Sequence[Text], sampling: Sampling, stop: Stop | None, use_cache: bool,
    fused: FusedCanvases | None,
) -> Iterator[Step]:  # fmt: skip
    end_token_ids = model.config.eos_token_ids
    reader = Reader(model, len(texts), max(len(text.tokens) for text in texts) if use_cache else None, fused)
    writing = list(texts)
    for step in itertools.count():
        queries = [text.queries for text in texts]
        logits_NV = reader.logits([text.fresh for text in texts], queries)
        asked = [(text, text.history) for text in writing for _ in text.queries]
        chosen = sampling.choose(logits_NV, [text.generator for text, _ in asked], [known for _, known in asked])
        token_and_log_prob = zip(*(column.tolist() for column in chosen), strict=True)

        written: list[Written] = []
        stopped: dict[int, StopReason] = {}
        for text in writing:
            choices = [Choice(position, *next(token_and_log_prob)) for position, _ in text.queries]
            for position, token_id, log_prob in text.write(choices, end_token_ids):
                log_prob = checked_log_prob(log_prob, text.number)
                written.append(Written(step, text.number, position, token_id, log_prob))
            if why := text.why_complete(end_token_ids, stop):
                stopped[text.number] = why
        yield Step(tuple(written), stopped)

        writing = [text for text in writing if text.number not in stopped]
        if not writing:
            return
