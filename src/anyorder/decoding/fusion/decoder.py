"""Writing one answer to a question that is asked in several phrasings.

A `Reader` scores the next token of all questions at once; what it looks at is the method's business. What is here is
the same for all: a token is chosen, written and read on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from anyorder.decoding.checks import not_numbers
from anyorder.decoding.fusion.ensembles import POOLS, HybridReader, PooledReader
from anyorder.decoding.fusion.layout import POSITIONS
from anyorder.decoding.fusion.question import HYBRID, METHODS, Fusion, Question, check_questions, fused_layouts
from anyorder.decoding.fusion.reader import AttentionReader, MaskedReader, Reader
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.fusion.weighting import APE, CORRECTIONS, Correction
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Step, Stop, StopReason, Trace, Written, collect
from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

__all__ = [
    "APE", "CORRECTIONS", "METHODS", "POSITIONS", "Fusion", "Question", "fusion_reader", "fusion_steps", "write_fused",
]  # fmt: skip

MEMBER = 2**32
"""Phrasing i of question q, asked alone, draws as prompt number q + i * MEMBER; the first one as the question."""

PLAIN = Fusion()
GREEDY = Sampling()


def write_fused(
    model: Llama,
    questions: Sequence[Question],
    *,
    fusion: Fusion = PLAIN,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop: Stop | None = None,
    use_cache: bool = True,
    store: SegmentStore | None = None,
    rows: Sequence[int] | None = None,
    same_answer: Callable[[Sequence[int]], Hashable] = tuple,
) -> Generation:
    """Answers every question until an end token, the stop condition or a limit of length.

    In the result, a question's sequence is its prefix, all its phrasings, its suffix, and what was written.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        questions: of any numbers and lengths of phrasings.
        fusion: the method, and its options.
        max_new_tokens: tokens to write per answer at most; nobody writes beyond the trained length either.
        sampling: how a token is chosen.
        stop: asked after each token that is no end token, with the number of the question; the token itself stays.
        use_cache: False reads all again for each token: the slow, obvious twin.
        store: keeps what is read of prefixes and phrasings, and recalls it.
        rows: number of each question, which decides its random draws; 0, 1, 2, ... unless given.
        same_answer: for "vote": answers of which this is the same are one answer.

    Raises:
        UserError: a question that the network cannot read or answer, in a sentence that names the remedy.
    """
    rows = range(len(questions)) if rows is None else rows
    if fusion.method == "vote":
        return _vote(model, questions, stop, rows, same_answer, max_new_tokens, sampling, use_cache, store)
    steps = fusion_steps(
        model, questions, fusion=fusion, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, rows=rows,
        use_cache=use_cache, store=store,
    )  # fmt: skip
    prompts = [layout.token_ids for layout in fused_layouts(questions, fusion.positions)]
    return collect(steps, prompts, rows, model.config.eos_token_ids)


def fusion_steps(
    model: Llama,
    questions: Sequence[Question],
    *,
    fusion: Fusion,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop | None,
    rows: Sequence[int],
    use_cache: bool = True,
    store: SegmentStore | None = None,
) -> Iterator[Step]:
    """The steps of `write_fused`, each as soon as it is taken; mistakes are raised at once. A vote has no steps."""
    if fusion.method == "vote":
        raise UserError("method is 'vote', but only whole answers can be counted: use fuse, or another method.")
    limits = check_questions(model.config, questions, fusion, max_new_tokens, rows)
    return _steps(model, questions, fusion, limits, sampling, stop, rows, use_cache, store)


def _steps(
    model: Llama,
    questions: Sequence[Question],
    fusion: Fusion,
    limits: Sequence[int],
    sampling: Sampling,
    stop: Stop | None,
    rows: Sequence[int],
    use_cache: bool,
    store: SegmentStore | None,
) -> Iterator[Step]:
    prompts = [layout.token_ids for layout in fused_layouts(questions, fusion.positions)]
    written: list[list[int]] = [[] for _ in questions]
    generators = sampling.generators(rows)
    reader = fusion_reader(model, questions, fusion, max(limits), use_cache, store)
    writing, passes = list(range(len(questions))), 0
    logits_QV = reader.first()

    for step in itertools.count():
        chosen = sampling.choose(
            logits_QV[writing], [generators[q] for q in writing], [[*prompts[q], *written[q]] for q in writing]
        )
        events: list[Written] = []
        stopped: dict[int, StopReason] = {}
        for q, token_id, log_prob in zip(writing, *(column.tolist() for column in chosen), strict=True):
            if math.isnan(log_prob):
                raise not_numbers(f" for question {rows[q]}")
            events.append(Written(step, rows[q], len(prompts[q]) + step, token_id, log_prob))
            written[q].append(token_id)
            if token_id in model.config.eos_token_ids:
                stopped[rows[q]] = "end"
            elif stop is not None and stop(rows[q], written[q]):
                stopped[rows[q]] = "stop"
            elif len(written[q]) == limits[q]:
                stopped[rows[q]] = "length"
        yield Step(tuple(events), stopped, reader.passes - passes)
        passes = reader.passes
        writing = [q for q in writing if rows[q] not in stopped]
        if not writing:
            return
        logits_QV = reader.next([written[q][-1] if q in writing else None for q in range(len(questions))])


def fusion_reader(
    model: Llama,
    questions: Sequence[Question],
    fusion: Fusion,
    new_tokens: int,
    use_cache: bool = True,
    store: SegmentStore | None = None,
) -> Reader:
    """What scores the next tokens of these questions by this method."""
    shares = [question.shares for question in questions]

    def reader(asked: Sequence[Question], positions: str, weights: list[list[float]], correction: Correction) -> Reader:
        layouts = fused_layouts(asked, positions)
        if use_cache:
            return AttentionReader(model, layouts, weights, correction, new_tokens, store)
        return MaskedReader(model, layouts, weights, correction)

    def attention() -> Reader:
        return reader(questions, fusion.positions, shares, fusion.correction)

    def pooled(method: str) -> Reader:
        asked = [
            [*question.alone(), *([replace(question, segments=(), weights=None)] if method == "contrast" else [])]
            for question in questions
        ]
        singles = [single for of_question in asked for single in of_question]
        weights: list[list[float]] = [[1.0] * len(single.segments) for single in singles]
        alone = reader(singles, "shared", weights, "none")
        return PooledReader(alone, [len(of_question) for of_question in asked], shares, POOLS[method])

    if fusion.method == "attention":
        return attention()
    return HybridReader(attention(), pooled("logit-mean")) if fusion.method == HYBRID else pooled(fusion.method)


# ---- votes ---------------------------------------------------------------------------------------------------------


def _vote(
    model: Llama,
    questions: Sequence[Question],
    stop: Stop | None,
    rows: Sequence[int],
    same_answer: Callable[[Sequence[int]], Hashable],
    max_new_tokens: int,
    sampling: Sampling,
    use_cache: bool,
    store: SegmentStore | None,
) -> Generation:
    """Each phrasing answers alone, and the answer with the most weight stands; of several such, the likeliest."""
    check_questions(model.config, questions, Fusion(method="vote"), max_new_tokens, rows)
    members = [member for question in questions for member in question.alone()]
    numbers = [
        row + index * MEMBER
        for row, question in zip(rows, questions, strict=True)
        for index in range(len(question.segments))
    ]
    generation = write_fused(
        model,
        members,
        fusion=Fusion(positions="shared", correction="none"),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        use_cache=use_cache,
        store=store,
        rows=numbers,
    )
    likelihood = dict.fromkeys(numbers, 0.0)
    for event in generation.trace.events:
        likelihood[event.row] += event.log_prob
    chosen: list[int] = []
    first = 0
    for question in questions:
        group = range(first, first + len(question.segments))
        first = group.stop
        answers = [same_answer(generation.written[index]) for index in group]
        votes: dict[Hashable, float] = {}
        for answer, share in zip(answers, question.shares, strict=True):
            votes[answer] = votes.get(answer, 0.0) + share
        most = max(votes.values())
        elected = [index for index, answer in zip(group, answers, strict=True) if votes[answer] >= most * (1 - 1e-9)]
        chosen.append(max(elected, key=lambda index: likelihood[numbers[index]]))
    return _elected(generation, questions, chosen, numbers, rows)


def _elected(
    generation: Generation,
    questions: Sequence[Question],
    chosen: Sequence[int],
    numbers: Sequence[int],
    rows: Sequence[int],
) -> Generation:
    """The chosen answers, each behind its whole question, as other methods have it."""
    layouts = fused_layouts(questions, "shared")
    row_of = {numbers[index]: (row, layout) for index, row, layout in zip(chosen, rows, layouts, strict=True)}
    written = [generation.written[index] for index in chosen]
    events = []
    for event in generation.trace.events:
        if event.row in row_of:
            row, layout = row_of[event.row]
            events.append(event._replace(row=row, position=layout.length + event.step))
    trace = generation.trace
    return Generation(
        sequences=[[*layout.token_ids, *ids] for layout, ids in zip(layouts, written, strict=True)],
        written=written,
        stopped=[generation.stopped[index] for index in chosen],
        trace=Trace(tuple(events), trace.passes, trace.seconds, trace.end_token_ids),
    )
