"""Writing in a fixed order in fewer passes than groups, from exactly the same distribution.

Any-subset speculative decoding (AS-ARM, arXiv 2504.20456). The network that drafts is the one that judges. A first pass
asks about several groups at once, none of which knows of the others: the first of them is what the next pass would have
written, the others are drafts. A second pass reads the drafts and asks about the same places in their order. A draft x
stays with probability min(1, p(x) / q(x)), q being what it was drawn from and p what it should have been drawn from;
otherwise a token is drawn from max(0, p - q) instead, and the drafts behind its group, which had seen x, are dropped.
When all drafts of a text stay, the second pass has also told what comes behind them.

Two passes write two groups at least, and the last group takes one, so there are never more passes than groups.

Shape suffixes: N places asked about in all texts, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from anyorder.decoding.any_order.decoder import texts_of
from anyorder.decoding.any_order.reader import Query, TwoStreamReader
from anyorder.decoding.any_order.text import AnyOrderText, Content
from anyorder.decoding.loop import write_step
from anyorder.decoding.sampling import Sampling, draw
from anyorder.decoding.text import Choice
from anyorder.decoding.trace import Step, Stop, StopReason, Written
from anyorder.errors import UserError
from anyorder.orders.kinds import MostConfident, Order
from anyorder.orders.plan import GroupPlan
from anyorder.utils.annotations import check_fields

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


@dataclass(frozen=True, kw_only=True)
class Speculative:
    """An order that is written with speculation: in fewer passes, from the same distribution.

    Attributes:
        order: a plan or an order; the network cannot choose it, since drafts need to know what comes next.
        draft: groups that a pass asks about, the first of which is no draft.

    Raises:
        UserError: there is nothing to draft, or no fixed order.
    """

    order: GroupPlan | Order
    draft: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.order, MostConfident):
            raise UserError("the order of a draft is MostConfident, known only as it is written: give a fixed order.")
        check_fields(self)
        if not isinstance(self.draft, int) or self.draft < 2:
            raise UserError(f"draft is {self.draft!r}: give a number of groups above 1, or leave speculation out.")


def speculative_steps(
    model: Llama,
    canvases: Sequence[Sequence[int]],
    order: Speculative,
    *,
    sampling: Sampling,
    sample_ids: Sequence[int],
    stop: Stop | None = None,
    use_cache: bool = True,
) -> Iterator[Step]:
    """Fills canvases as `any_order_steps` does, whose arguments these are; a step is a pass."""
    texts = texts_of(model, canvases, order.order, sampling, sample_ids)
    return _steps(model, texts, order.draft, sampling, stop, use_cache)


@torch.no_grad()
def _steps(
    model: Llama, texts: Sequence[AnyOrderText], draft: int, sampling: Sampling, stop: Stop | None, use_cache: bool
) -> Iterator[Step]:
    reader = TwoStreamReader(model, texts, use_cache=use_cache)
    writing = list(texts)
    for number in itertools.count():
        step = _Writing(2 * number, stop)
        places = {text.sample_id: _next_places(text, draft) for text in writing}
        _ask(reader, texts, {text.sample_id: text.fresh for text in writing}, places, sampling)
        drafts = {text.sample_id: _drafts(places[text.sample_id]) for text in writing}
        for text in writing:
            step.write(text, [drafts[text.sample_id][position].choice for position in text.groups[0]])
        yield step.done()

        writing = [text for text in writing if text.sample_id not in step.stopped]
        if not writing:
            return
        step = _Writing(2 * number + 1, stop)
        content = {text.sample_id: list(text.fresh) for text in writing}
        for text in writing:
            read, places[text.sample_id] = _in_their_order(text, drafts[text.sample_id])
            content[text.sample_id] += read
        _ask(reader, texts, content, places, sampling)
        for text in writing:
            _judge(text, places[text.sample_id], drafts[text.sample_id], step)
        # Those that were rejected, and all that saw them; what is fresh has not been read as it is.
        reader.forget([min((row.rank for row in text.fresh), default=text.rank) for text in texts])
        yield step.done()

        writing = [text for text in writing if text.sample_id not in step.stopped]
        if not writing:
            return


class _Place:
    """A place that a pass asks about, and what the pass says of it.

    Attributes:
        rank: it is asked about given all ranks below.
        history: the tokens there, in any order.
        probability_V: what a token is drawn from there.
        log_prob_V: what the trace tells.
    """

    def __init__(self, text: AnyOrderText, position: int, rank: int, history: list[int]) -> None:
        self.position = position
        self.rank = rank
        self.history = history
        self.rng = text.rng
        self.probability_V = self.log_prob_V = torch.empty(0)

    def choice(self, token_id: int) -> Choice:
        """A token, as it is written."""
        log_prob = float(self.log_prob_V[token_id])
        return Choice(self.position, token_id, log_prob, log_prob)


class _Draft(NamedTuple):
    """A token, and what it was drawn from."""

    choice: Choice
    probability_V: Tensor


def _next_places(text: AnyOrderText, draft: int) -> list[_Place]:
    """Those of the next groups, all of them asked about as if they came next."""
    history = text.history
    return [_Place(text, position, text.rank, history) for group in text.groups[:draft] for position in group]


def _in_their_order(text: AnyOrderText, drafts: Mapping[int, _Draft]) -> tuple[list[Content], list[_Place]]:
    """Drafts as rows that are read, group by group; and their places, with those of the group behind them."""
    read: list[Content] = []
    places: list[_Place] = []
    for rank, group in enumerate(text.groups, start=text.rank):
        history = text.history + [row.token_id for row in read]
        places += [_Place(text, position, rank, history) for position in group]
        if any(position not in drafts for position in group):
            break
        read += [Content(position, drafts[position].choice.token_id, rank) for position in group]
    return read, places


def _drafts(places: Sequence[_Place]) -> dict[int, _Draft]:
    """A token for each place, by position."""
    tokens = draw(torch.stack([place.probability_V for place in places]), [place.rng for place in places])
    return {
        place.position: _Draft(place.choice(token_id), place.probability_V)
        for place, token_id in zip(places, tokens.tolist(), strict=True)
    }


class _Writing:
    """A step while it is made."""

    def __init__(self, number: int, stop: Stop | None) -> None:
        self.number = number
        self.stop = stop
        self.written: list[Written] = []
        self.stopped: dict[int, StopReason] = {}
        self.drafted = self.accepted = 0

    def write(self, text: AnyOrderText, choices: Sequence[Choice]) -> bool:
        """Write a group; return whether the groups that were to follow still do."""
        following = text.groups[1:]
        group = write_step(self.number, [(text, choices)], self.stop)
        self.written += group.written
        self.stopped |= group.stopped
        return text.groups == following

    def done(self) -> Step:
        return Step(tuple(self.written), self.stopped, drafted=self.drafted, accepted=self.accepted)


def _ask(
    reader: TwoStreamReader, texts: Sequence[AnyOrderText], content: Mapping[int, Sequence[Content]],
    places: Mapping[int, Sequence[_Place]], sampling: Sampling,
) -> None:  # fmt: skip
    """One pass: tells each place its distribution. What is not written any more is neither read nor asked about."""
    asked = [places[text.sample_id] if text.sample_id in content else () for text in texts]
    queries = [[Query(place.position, place.rank) for place in of_text] for of_text in asked]
    logits_NV = reader.read([content.get(text.sample_id, ()) for text in texts], queries)
    flat = [place for of_text in asked for place in of_text]
    probability_NV, log_prob_NV = sampling.distribution(logits_NV, [place.history for place in flat])
    for place, probability_V, log_prob_V in zip(flat, probability_NV.cpu(), log_prob_NV.cpu(), strict=True):
        place.probability_V, place.log_prob_V = probability_V, log_prob_V


def _judge(text: AnyOrderText, places: Sequence[_Place], drafts: Mapping[int, _Draft], step: _Writing) -> None:
    """Writes the drafts of a text, group by group, until one is rejected or there are none."""
    for _, group in itertools.groupby(places, key=lambda place: place.rank):
        choices: list[Choice] = []
        goes_on = True
        for place in group:
            if place.position not in drafts:  # behind all drafts, so that there is nothing to judge
                choices.append(_drafts([place])[place.position].choice)
                goes_on = False
                continue
            token_id, stays = _judged(place, drafts[place.position])
            choices.append(place.choice(token_id))
            goes_on &= stays
            step.drafted += 1
            step.accepted += stays
        goes_on &= step.write(text, choices)
        if not goes_on or text.sample_id in step.stopped:
            return
        text.fresh = []  # read as it is


def _judged(place: _Place, draft: _Draft) -> tuple[int, bool]:
    """The draft, or the token that stands instead of it; and whether it is the draft."""
    p_V, q_V, token_id = place.probability_V, draft.probability_V, draft.choice.token_id
    u = torch.rand((), dtype=torch.float64, generator=place.rng)
    if u * q_V[token_id] < p_V[token_id]:
        return token_id, True
    return int(draw((p_V - q_V).clamp(min=0)[None], [place.rng])), False
