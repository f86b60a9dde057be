"""Reading questions up to their answers, and then the answers, token by token.

A prefix is read once for all segments behind it. All segments of all questions are then one batch, each behind the keys
of its prefix, so plain causal attention keeps them apart. Their keys are joined per question, for suffix and answer to
be read over the joined cache.

Shape suffixes: B rows of a batch, R tokens of a row, Q questions, S slots or rows of all questions, N rows or
samples of one question, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from anyorder.attention import NO_CORRECTIONS, Corrections
from anyorder.decoding.fusion.ensembles import logit_mean, pooled
from anyorder.decoding.fusion.layout import ANSWER, FusionLayout, Piece, Question, Rows, lay_out
from anyorder.decoding.fusion.method import Fusion
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.fusion.weighting import corrected
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.model.cache import Cache
from anyorder.model.llama import Llama, Views
from anyorder.utils.ragged import distinct, log_softmax, pad
from anyorder.visibility import causal, segments


class Prefiller:
    """Reads questions up to their answers.

    Args:
        model: the network.
        store: keeps and recalls the keys of prefixes and segments.

    Attributes:
        passes: forward passes so far.
    """

    def __init__(self, model: Llama, store: SegmentStore | None = None) -> None:
        self.model = model
        self.store = store
        self.passes = 0

    @torch.no_grad()
    def prefill(self, questions: Sequence[Question], fusion: Fusion, new_tokens: int) -> tuple[Cache, Tensor]:
        """Read prefixes and segments, then suffixes over all segments.

        Args:
            questions: the questions.
            fusion: the positions and the correction.
            new_tokens: tokens of an answer at most, for which the cache has room.

        Returns:
            Keys and values, one sample per question; and the logits of the first token of each answer, `[questions,
            vocabulary]`.
        """
        layouts = [question.layout(fusion.positions) for question in questions]
        suffixes = [Piece(layout, layout.suffix_start, layout.length) for layout in layouts]
        cache, rows = self.read_segments(layouts, max(suffix.length for suffix in suffixes) + new_tokens)
        of_suffix = self._read(suffixes, cache, corrected(questions, fusion.correction, self.model.device))
        last = []
        for suffix_RE, (prefix_RE, *of_segments) in zip(of_suffix, rows, strict=True):
            ending = [suffix_RE] if len(suffix_RE) else of_segments or [prefix_RE]
            last.append(torch.cat([rows_RE[-1:] for rows_RE in ending]))
        return cache, next_logits(self.model, questions, last)

    @torch.no_grad()
    def read_segments(self, layouts: Sequence[FusionLayout], more: int) -> tuple[Cache, list[list[Tensor]]]:
        """Read prefixes and segments.

        Args:
            layouts: of the questions.
            more: tokens that will be read behind the segments, at most.

        Returns:
            Keys and values, one sample per question, which holds its prefix once; and for each question the rows of
            its prefix and of each segment after the last layer, `[tokens, hidden]`.
        """
        prefixes = {layout.prefix: Piece(layout, 0, layout.prefix_length) for layout in layouts}
        cache = self.model.new_cache(len(prefixes), max(map(len, prefixes)))
        of_prefix = self._recall_or_read(list(prefixes.values()), cache)
        number_of = {prefix: number for number, prefix in enumerate(prefixes)}

        # A question without segments has an empty piece, whose row of the batch holds its prefix.
        pieces = [[Piece(layout, *span) for span in layout.segment_spans or [(0, 0)]] for layout in layouts]
        flat = [piece for of_question in pieces for piece in of_question]
        copies = torch.tensor([number_of[piece.layout.prefix] for piece in flat], device=self.model.device)
        cache = cache.gather(copies, capacity=cache.capacity + max(piece.length for piece in flat))
        of_piece = self._recall_or_read(flat, cache)

        numbers = [part_N.tolist() for part_N in torch.arange(len(flat)).split([len(parts) for parts in pieces])]
        rows = [
            [of_prefix[number_of[layout.prefix]], *(of_piece[number] for number in own[: len(layout.segment_spans)])]
            for layout, own in zip(layouts, numbers, strict=True)
        ]
        return _join(cache, layouts, numbers, more), rows

    def _recall_or_read(self, pieces: Sequence[Piece], cache: Cache) -> list[Tensor]:
        """Return what `_read` does; recall the pieces that are in the store, and read and store the others."""
        if self.store is None:
            return self._read(pieces, cache)
        recalled = self.store.recall(pieces, cache)
        missing = [piece.empty if b in recalled else piece for b, piece in enumerate(pieces)]
        rows = self._read(missing, cache)
        self.store.keep(missing, cache, rows)
        return [recalled.get(b, rows_RE) for b, rows_RE in enumerate(rows)]

    def _read(self, pieces: Sequence[Piece], cache: Cache, corrections: Corrections = NO_CORRECTIONS) -> list[Tensor]:
        """Read pieces behind what the cache holds, each row seeing all keys up to its position.

        Returns:
            The rows of each piece after the last layer, `[tokens, hidden]`.
        """
        model, rows = self.model, lay_out(pieces, self.model.device)
        if not rows.ids.shape[1]:
            shape = (len(pieces), 0, model.config.hidden_size)
            return list(torch.zeros(shape, dtype=model.dtype, device=model.device))
        self.passes += 1
        views = model.prepare(
            causal(), rows.labels, valid=rows.valid, cache=cache, rotary_positions=rows.fractional_places,
            corrections=corrections,
        )  # fmt: skip
        hidden_BRE = model.hidden(rows.ids, views, cache)
        return [hidden_BRE[b, : piece.length] for b, piece in enumerate(pieces)]


def _join(cache: Cache, layouts: Sequence[FusionLayout], numbers: Sequence[Sequence[int]], more: int) -> Cache:
    """Join the samples of each question, one per segment, to one that holds its prefix once."""
    samples, slots = [], []
    for layout, own in zip(layouts, numbers, strict=True):
        first = layout.prefix_length  # slot at which a segment begins in its sample
        samples.append([own[max(number - 1, 0)] for number in layout.segment_numbers[: layout.suffix_start]])
        lengths = [end - start for start, end in layout.segment_spans]
        slots.append([*range(first), *(first + index for length in lengths for index in range(length))])
    sample_QS, keep_QS = pad(samples, cache.present.device)
    slot_QS, _ = pad(slots, cache.present.device)
    return cache.gather(sample_QS, slot_QS, keep_QS, keep_QS.shape[1] + more)


def next_logits(model: Llama, questions: Sequence[Question], last: Sequence[Tensor]) -> Tensor:
    """Return the logits of the next token of each answer, `[questions, vocabulary]`.

    Args:
        model: the network.
        questions: the questions.
        last: of each question, the last row `[1, hidden]`; the last row of each segment, `[segments, hidden]`, where
            nothing is read behind them, so that no row sees all of them. Then log-probabilities are averaged.
    """
    logits_SV = model.logits(torch.cat(list(last))).split([len(rows_NE) for rows_NE in last])
    wide = torch.promote_types(model.dtype, torch.float32)
    found = []
    for question, logits_NV in zip(questions, logits_SV, strict=True):
        several = len(logits_NV) > 1
        found.append(pooled(logit_mean, log_softmax(logits_NV), question.shares) if several else logits_NV[0].to(wide))
    return torch.stack(found)


@torch.no_grad()
def masked_pass(
    model: Llama, questions: Sequence[Question], fusion: Fusion, answers: Sequence[Sequence[int]]
) -> tuple[Rows, Views]:  # fmt: skip
    """Prepare to read each question and its answer as one masked sequence, without a cache."""
    layouts = [question.layout(fusion.positions) for question in questions]
    rows = lay_out([layout.extended(ids).whole for layout, ids in zip(layouts, answers, strict=True)], model.device)
    views = model.prepare(
        segments(), rows.ordered, valid=rows.valid, rotary_positions=rows.fractional_places,
        corrections=corrected(questions, fusion.correction, model.device),
    )  # fmt: skip
    return rows, views


class FusedReader(CausalReader):
    """Reads answers as `CausalReader` reads texts, over the joined keys of their questions and with corrections.

    Args:
        model: the network.
        questions: the question of each text of the batch, whose prompt is the layout of that question; equal questions
            are read once.
        fusion: the positions and the correction.
        use_cache: False reads question and answer again for each token, as one masked sequence.
        store: keeps and recalls the keys of prefixes and segments.
    """

    def __init__(
        self, model: Llama, questions: Mapping[CausalText, Question], fusion: Fusion, *, use_cache: bool = True,
        store: SegmentStore | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, list(questions), use_cache=use_cache)
        self.questions = questions
        self.fusion = fusion
        self.store = store
        self.corrections = corrected(list(questions.values()), fusion.correction, model.device)
        behind_B1 = torch.tensor([[len(question.segments) + 1] for question in questions.values()], device=model.device)
        self.labels = {"part": torch.full_like(behind_B1, ANSWER), "segment": behind_B1}

    @property
    def cacheable(self) -> int:
        """Tokens of a text up to which it can be read from a cache: all, as positions are limited, not tokens."""
        return self.capacity

    def _position(self, text: CausalText) -> int:
        layout = self.questions[text].layout(self.fusion.positions)
        return layout.next_place + len(text.tokens) - text.first - 1

    def _prefill(self) -> Tensor:
        different, copies_B = distinct(list(self.questions.values()), self.model.device)
        new_tokens = max(text.limit - text.first for text in self.texts)
        prefiller = Prefiller(self.model, self.store)
        self.cache, logits_QV = prefiller.prefill(different, self.fusion, new_tokens)
        self.passes += prefiller.passes - 1  # of which one is counted already
        if len(different) == len(self.texts):
            return logits_QV
        self.cache = self.cache.gather(copies_B)
        return logits_QV[copies_B]

    def _reread(self, texts: Sequence[CausalText]) -> Tensor:
        questions = [self.questions[text] for text in texts]
        answers = [text.tokens[text.first :] for text in texts]
        rows, views = masked_pass(self.model, questions, self.fusion, answers)
        last = []
        for hidden_RE, question, answer in zip(self.model.hidden(rows.ids, views), questions, answers, strict=True):
            layout = question.layout(self.fusion.positions)
            behind = question.suffix or answer or not question.segments
            ends = [layout.length + len(answer)] if behind else [end for _, end in layout.segment_spans]
            last.append(hidden_RE[[end - 1 for end in ends]])
        return next_logits(self.model, questions, last)
