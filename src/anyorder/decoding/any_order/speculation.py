"""Writing in a fixed order in fewer passes than groups, from exactly the same distribution.

Any-subset speculative decoding (AS-ARM, arXiv 2504.20456). The network that drafts is the one that judges. A first pass
predicts several groups at once, independently of each other: the first of them is what the next pass would have
written, the others are drafts. A second pass reads the drafts and predicts the same positions in their order. A draft x
is accepted with probability min(1, p(x) / q(x)), q being what it was drawn from and p what it should have been drawn
from; otherwise a token is drawn from max(0, p - q) instead, and the drafts behind its group, which had seen x, are
dropped. When all drafts of a text are accepted, the second pass has also predicted the group behind them.

Two passes write two groups at least, and the last group takes one, so there are never more passes than groups.

Shape suffixes: N queries of all texts, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from anyorder.decoding.any_order.decoder import texts_of
from anyorder.decoding.any_order.reader import Query, TwoStreamReader
from anyorder.decoding.any_order.text import AnyOrderText, Content
from anyorder.decoding.loop import Choice, write_step
from anyorder.decoding.sampling import Sampling, draw
from anyorder.decoding.trace import Step, Stop
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
        order: a plan or an order; the network cannot choose it, since the groups to draft must be known before.
        draft: groups that a pass predicts, the first of which is no draft.

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
    """Fill canvases as `any_order_steps` does, whose arguments these are; a step is a pass."""
    texts = texts_of(model, canvases, order.order, sampling, sample_ids)
    return _Speculation(TwoStreamReader(model, texts, use_cache=use_cache), order.draft, sampling, stop).steps()


class _Prediction(NamedTuple):
    """The distribution of the token at a position.

    Attributes:
        query: the position and its rank.
        probability_V: to draw a token from.
        log_prob_V: for the trace.
    """

    query: Query
    probability_V: Tensor
    log_prob_V: Tensor

    def choice(self, token_id: int) -> Choice:
        """Return a token at this position, as it is written."""
        log_prob = float(self.log_prob_V[token_id])
        return Choice(self.query.position, token_id, log_prob, log_prob)


class _Draft(NamedTuple):
    """A token, and the distribution that it was drawn from."""

    token_id: int
    probability_V: Tensor


class _Speculation:
    """Texts that are written by drafts.

    Args:
        reader: of the texts.
        draft, sampling, stop: see `Speculative` and `any_order_steps`.

    Attributes:
        writing: texts that are not complete.
        drafts: of each of them, by position.
    """

    def __init__(self, reader: TwoStreamReader, draft: int, sampling: Sampling, stop: Stop | None) -> None:
        self.reader = reader
        self.draft = draft
        self.sampling = sampling
        self.stop = stop
        self.writing = list(reader.texts)
        self.drafts: dict[AnyOrderText, dict[int, _Draft]] = {}

    @torch.no_grad()
    def steps(self) -> Iterator[Step]:
        """Draft and judge in turn until all texts are complete."""
        for number in itertools.count():
            step = self._judge(number) if number % 2 else self._draft(number)
            yield step
            self.writing = [text for text in self.writing if text.sample_id not in step.stopped]
            if not self.writing:
                return

    def _draft(self, number: int) -> Step:
        """Predict the next groups, each as if it came next; write the first, and keep the others as drafts."""
        queries = {
            text: [Query(position, text.rank) for group in text.groups[: self.draft] for position in group]
            for text in self.writing
        }
        choices = []
        for text, predictions in self._predict({text: [] for text in self.writing}, queries).items():
            probability_NV = torch.stack([prediction.probability_V for prediction in predictions])
            tokens = draw(probability_NV, [text.rng] * len(predictions)).tolist()
            self.drafts[text] = {
                prediction.query.position: _Draft(token_id, prediction.probability_V)
                for prediction, token_id in zip(predictions, tokens, strict=True)
            }
            first = list(zip(predictions, tokens, strict=True))[: len(text.groups[0])]
            choices.append((text, [prediction.choice(token_id) for prediction, token_id in first]))
        return write_step(number, choices, self.stop)

    def _judge(self, number: int) -> Step:
        """Read the drafts, predict them in their order and the group behind them, and write what is accepted."""
        drafts: dict[AnyOrderText, list[Content]] = {text: [] for text in self.writing}
        queries: dict[AnyOrderText, list[Query]] = {text: [] for text in self.writing}
        for text in self.writing:
            known = self.drafts[text]
            for rank, group in enumerate(text.groups, start=text.rank):
                queries[text] += [Query(position, rank) for position in group]
                if any(position not in known for position in group):
                    break
                drafts[text] += [Content(position, known[position].token_id, rank) for position in group]
        predictions = self._predict(drafts, queries)
        steps = [step for text in self.writing for step in self._accepted(number, text, predictions[text])]
        # Those that were rejected, and all that saw them; what is fresh has not been read as it is.
        texts = self.reader.texts
        self.reader.forget([min((row.rank for row in text.fresh), default=text.rank) for text in texts])
        return Step(
            written=tuple(event for step in steps for event in step.written),
            stopped={sample_id: why for step in steps for sample_id, why in step.stopped.items()},
            drafted=sum(step.drafted for step in steps),
            accepted=sum(step.accepted for step in steps),
        )

    def _predict(
        self, drafts: Mapping[AnyOrderText, Sequence[Content]], queries: Mapping[AnyOrderText, Sequence[Query]]
    ) -> dict[AnyOrderText, list[_Prediction]]:
        """Run one pass over what is fresh and the drafts; complete texts are neither read nor predicted."""
        texts = self.reader.texts
        content = [[*text.fresh, *drafts[text]] if text in queries else [] for text in texts]
        logits_NV = self.reader.read(content, [queries.get(text, ()) for text in texts])
        history = None if self.sampling.repetition_penalty == 1 else [
            [*text.history, *(row.token_id for row in drafts[text] if row.rank < query.rank)]
            for text, of_text in queries.items()
            for query in of_text
        ]  # fmt: skip
        probability_NV, log_prob_NV = self.sampling.distribution(logits_NV, history)
        distributions = zip(probability_NV.cpu(), log_prob_NV.cpu(), strict=True)
        return {
            text: [_Prediction(query, *next(distributions)) for query in of_text] for text, of_text in queries.items()
        }

    def _accepted(self, number: int, text: AnyOrderText, predictions: Sequence[_Prediction]) -> Iterator[Step]:
        """Write the drafts of a text, group by group, until one is rejected or there are none."""
        for _, group in itertools.groupby(predictions, key=lambda prediction: prediction.query.rank):
            choices, drafted, accepted, following = [], 0, 0, text.groups[1:]
            for prediction in group:
                draft = self.drafts[text].get(prediction.query.position)
                token_id, is_draft = _judged(prediction.probability_V, draft, text.rng)
                choices.append(prediction.choice(token_id))
                drafted += draft is not None
                accepted += is_draft
            step = write_step(number, [(text, choices)], self.stop)
            yield replace(step, drafted=drafted, accepted=accepted)
            # Behind an end token, positions are taken away that the drafts of later groups have seen.
            if accepted < len(choices) or text.groups != following or step.stopped:
                return
            text.fresh = []  # read as it is


def _judged(p_V: Tensor, draft: _Draft | None, rng: torch.Generator) -> tuple[int, bool]:
    """Return a token of the distribution p, and whether it is the draft; without a draft, one that is drawn."""
    if draft is None:
        return int(draw(p_V[None], [rng])), False
    token_id, q_V = draft
    u = torch.rand((), dtype=torch.float64, generator=rng)
    if u * q_V[token_id] < p_V[token_id]:
        return token_id, True
    return int(draw((p_V - q_V).clamp(min=0)[None], [rng])), False
