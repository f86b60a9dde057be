"""Reading questions up to their answers.

A prefix is read once for all segments behind it. All segments of all questions are then one batch, each behind the keys
of its prefix, so plain causal attention keeps them apart. Their keys are joined per question, for suffix and answer to
be read over the joined cache.

Shape suffixes: B rows of a batch, R tokens of a row, Q questions, S slots or rows of all questions, N rows of one
question, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from anyorder.attention import NO_CORRECTIONS, Corrections
from anyorder.decoding.fusion.ensembles import logit_mean, pooled
from anyorder.decoding.fusion.layout import FusionLayout, Piece, Rows, lay_out
from anyorder.decoding.fusion.weighting import corrected
from anyorder.utils.ragged import log_softmax, pad
from anyorder.visibility import causal, segments

if TYPE_CHECKING:
    from anyorder.decoding.fusion.question import Fusion, Question
    from anyorder.decoding.fusion.store import SegmentStore
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama, Views


class Joined(NamedTuple):
    """Prefix and segments of each question, read.

    Attributes:
        cache: their keys and values, one sample per question, with room for what follows.
        before: for each question the last row `[1, hidden]` of its prefix, or `[0, hidden]` where there is none.
        segments: for each question the rows `[tokens, hidden]` of each segment.
        passes: forward passes made.
    """

    cache: Cache
    before: list[Tensor]
    segments: list[list[Tensor]]
    passes: int


class Prefilled(NamedTuple):
    """Questions, read up to their answers.

    Attributes:
        cache: keys and values, one sample per question.
        logits: of the first token of each answer, `[questions, vocabulary]`.
        corrections: of the scores of whatever is read over the cache.
        passes: forward passes made.
    """

    cache: Cache
    logits: Tensor
    corrections: Corrections
    passes: int


@torch.no_grad()
def prefill(
    model: Llama, questions: Sequence[Question], fusion: Fusion, new_tokens: int, store: SegmentStore | None = None
) -> Prefilled:  # fmt: skip
    """Read prefixes and segments, then suffixes over all segments, leaving room for so many new tokens."""
    layouts = [question.layout(fusion.positions) for question in questions]
    corrections = corrected(questions, fusion.correction)
    suffixes = [Piece(layout, layout.suffix_start, layout.length) for layout in layouts]
    lengths = [len(question.suffix) for question in questions]
    joined = read_joined(model, layouts, max(lengths) + new_tokens, store)
    if any(lengths):
        hidden_QRE = read_rows(model, lay_out(suffixes, model.device), joined.cache, corrections)
    last = [
        hidden_QRE[q, length - 1 : length] if length else torch.cat([rows[-1:] for rows in of_segments] or [before])
        for q, (length, of_segments, before) in enumerate(zip(lengths, joined.segments, joined.before, strict=True))
    ]
    passes = joined.passes + any(lengths)
    return Prefilled(joined.cache, next_logits(model, questions, last), corrections, passes)


def next_logits(model: Llama, questions: Sequence[Question], last: Sequence[Tensor]) -> Tensor:
    """The logits `[questions, vocabulary]` of the next token of each answer.

    Args:
        model: the network.
        questions: the questions.
        last: of each question, the last row `[1, hidden]`; the last row of each segment, `[segments, hidden]`, where
            nothing is read behind them, so that no row sees all of them. Then log-probabilities are averaged.
    """
    logits_SV = model.logits(torch.cat(list(last))).split([len(rows_NE) for rows_NE in last])
    wide = torch.promote_types(model.dtype, torch.float32)
    return torch.stack(
        [
            logits_NV[0].to(wide)
            if len(logits_NV) == 1
            else pooled(logit_mean, log_softmax(logits_NV), question.shares)
            for question, logits_NV in zip(questions, logits_SV, strict=True)
        ]
    )


@torch.no_grad()
def masked_pass(
    model: Llama, questions: Sequence[Question], fusion: Fusion, answers: Sequence[Sequence[int]]
) -> tuple[Rows, Views]:  # fmt: skip
    """The rows and views that read each question and its answer as one masked sequence, without a cache."""
    layouts = [question.layout(fusion.positions) for question in questions]
    rows = lay_out([Piece.whole(*pair) for pair in zip(layouts, answers, strict=True)], model.device)
    order_BR = torch.arange(rows.ids.shape[1], device=model.device).expand_as(rows.ids)
    views = model.prepare(
        segments(), {"order": order_BR, **rows.labels}, valid=rows.valid,
        corrections=corrected(questions, fusion.correction), rotary_positions=rows.rotary_positions,
    )  # fmt: skip
    return rows, views


@torch.no_grad()
def read_joined(model: Llama, layouts: Sequence[FusionLayout], more: int, store: SegmentStore | None = None) -> Joined:
    """Read the prefixes and segments that the store lacks, leaving room for `more` tokens behind them."""
    prefixes = {layout.prefix: Piece(layout, 0, layout.prefix_length) for layout in layouts}
    cache = model.new_cache(len(prefixes), max(map(len, prefixes)))
    of_prefix, prefix_passes = _read(model, list(prefixes.values()), cache, store)
    number_of = {prefix: number for number, prefix in enumerate(prefixes)}

    # A question without segments has an empty piece, whose row of the batch holds its prefix.
    pieces = [[Piece(layout, *span) for span in layout.segment_spans or [(0, 0)]] for layout in layouts]
    flat = [piece for of_question in pieces for piece in of_question]
    copies = torch.tensor([number_of[piece.layout.prefix] for piece in flat], device=model.device)
    longest = max(piece.end - piece.start for piece in flat)
    cache = cache.gather(copies, capacity=cache.capacity + longest)
    of_piece, passes = _read(model, flat, cache, store)

    rows = iter(range(len(flat)))
    rows_of = [[next(rows) for _ in of_question] for of_question in pieces]
    return Joined(
        cache=_join(cache, layouts, rows_of, more),
        before=[of_prefix[number_of[layout.prefix]][-1:] for layout in layouts],
        segments=[
            [of_piece[row] for row in rows[: len(layout.segment_spans)]]
            for layout, rows in zip(layouts, rows_of, strict=True)
        ],
        passes=prefix_passes + passes,
    )


def _read(
    model: Llama, pieces: Sequence[Piece], cache: Cache, store: SegmentStore | None
) -> tuple[list[Tensor], int]:  # fmt: skip
    """Append pieces to the cache: the rows `[tokens, hidden]` of each, and the number of forward passes."""
    first = cache.next_slot.tolist()
    recalled = {} if store is None else store.recall(pieces, cache)
    missing = [piece.empty if b in recalled else piece for b, piece in enumerate(pieces)]
    lengths = [piece.end - piece.start for piece in missing]
    if not any(lengths):
        nothing = torch.zeros(0, model.config.hidden_size, dtype=model.dtype, device=model.device)
        return [recalled.get(b, nothing) for b in range(len(pieces))], 0
    hidden_BRE = read_rows(model, lay_out(missing, model.device), cache)
    rows = [recalled.get(b, hidden_BRE[b, :length]) for b, length in enumerate(lengths)]
    if store is not None:
        store.keep(missing, cache, first, rows)
    return rows, 1


def read_rows(model: Llama, rows: Rows, cache: Cache, corrections: Corrections = NO_CORRECTIONS) -> Tensor:
    """Read rows behind what the cache holds, each seeing all keys up to its position: `[batch, rows, hidden]`."""
    views = model.prepare(
        causal(), rows.labels, valid=rows.valid, cache=cache, corrections=corrections,
        rotary_positions=rows.rotary_positions,
    )  # fmt: skip
    return model.hidden(rows.ids, views, cache)


def _join(cache: Cache, layouts: Sequence[FusionLayout], rows_of: Sequence[Sequence[int]], more: int) -> Cache:
    """From a sample per segment to one per question, which holds its prefix once."""
    sources, slots = [], []
    for layout, rows in zip(layouts, rows_of, strict=True):
        behind = layout.prefix_length
        lengths = [end - start for start, end in layout.segment_spans]
        of_segment = [row for row, length in zip(rows, lengths, strict=False) for _ in range(length)]
        sources.append([rows[0]] * behind + of_segment)
        slots.append([*range(behind), *(behind + index for length in lengths for index in range(length))])
    device = cache.present.device
    source_QS, keep_QS = pad(sources, device)
    slot_QS, _ = pad(slots, device)
    return cache.gather(source_QS, slot_QS, keep_QS, keep_QS.shape[1] + more)
