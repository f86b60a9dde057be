"""Reading questions laid out for fusion, and scoring their next tokens.

A prefix is read once for all segments behind it. All segments of all questions are then one batch, each beside the
keys of its prefix; no large masked matrix is needed, as they do not see each other. Their keys and values are joined
per question, and suffix and answer are read over the joined cache. `MaskedReader` computes the same as one masked
sequence, again for each token: the slow, obvious twin.

Shape suffixes: Q questions, S segments of all questions, B rows of a batch, R tokens of a row, E hidden size,
V vocabulary.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.attention import BiasTerm, Tempered
from anyorder.decoding.fusion_layout import ANSWER, FusionLayout
from anyorder.decoding.fusion_weights import Correction, corrected
from anyorder.visibility import not_after, segments

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama, Views

Piece = tuple[FusionLayout, int, int]
"""The tokens from start to end of a layout."""


class Reader(ABC):
    """Scores of the next token of each question, given what was written in it."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Forward passes so far."""

    @abstractmethod
    def first(self) -> Tensor:
        """Logits `[questions, vocabulary]` of the first token of each answer."""

    @abstractmethod
    def next(self, tokens: Sequence[int | None]) -> Tensor:
        """Logits of the token after these, one for each question; None for a question that is complete."""

    @abstractmethod
    def select(self, questions: Sequence[int]) -> None:
        """Goes on with the questions named, in this order; one may be named several times."""

    @abstractmethod
    def reorder(self, parents: Sequence[int]) -> None:
        """Each answer goes on from the one named, which is of the same question."""


@dataclass(frozen=True)
class Joined:
    """Prefix and segments of each question, read.

    Attributes:
        cache: their keys and values, one sample per question, with room for what follows.
        before: for each question the last row `[1, hidden]` of its prefix, or `[0, hidden]` where there is none.
        segments: for each question the rows `[tokens, hidden]` of each segment.
        passes: forward passes that it took.
    """

    cache: Cache
    before: list[Tensor]
    segments: list[list[Tensor]]
    passes: int


@torch.no_grad()
def read_joined(model: Llama, layouts: Sequence[FusionLayout], more: int) -> Joined:
    """Reads prefixes and segments, with room for `more` tokens behind them."""
    prefixes = list(dict.fromkeys(layout.prefix for layout in layouts))
    pieces = {layout.prefix: (layout, 0, layout.prefix_length) for layout in layouts}
    cache = model.new_cache(len(prefixes), max(map(len, prefixes)))
    last = torch.zeros(len(prefixes), 0, model.config.hidden_size, dtype=model.dtype, device=model.device)
    if cache.capacity:
        last = read_pieces(model, [pieces[prefix] for prefix in prefixes], cache)
    of_question = [prefixes.index(layout.prefix) for layout in layouts]
    before = [last[b, max(len(prefixes[b]) - 1, 0) : len(prefixes[b])] for b in of_question]

    # A question without segments has a row as well, with no token, that holds its prefix.
    spans = [layout.segment_spans or ((0, 0),) for layout in layouts]
    read = [(layout, start, end) for layout, of_layout in zip(layouts, spans, strict=True) for start, end in of_layout]
    ends = list(itertools.accumulate(map(len, spans)))
    rows = [range(end - len(of_layout), end) for of_layout, end in zip(spans, ends, strict=True)]
    longest = max(end - start for _, start, end in read)
    prefix_of_row = [b for b, of_layout in zip(of_question, spans, strict=True) for _ in of_layout]
    passes = int(cache.capacity > 0) + int(longest > 0)
    cache = cache.gather(torch.tensor(prefix_of_row, device=model.device), capacity=cache.capacity + longest)
    hidden_SRE = read_pieces(model, read, cache) if longest else last[:0]
    segments = [
        [hidden_SRE[row, : end - start] for row, (start, end) in zip(of_layout, layout.segment_spans, strict=False)]
        for layout, of_layout in zip(layouts, rows, strict=True)
    ]
    return Joined(_join(cache, layouts, rows, more), before, segments, passes)


def _join(cache: Cache, layouts: Sequence[FusionLayout], rows: Sequence[Sequence[int]], more: int) -> Cache:
    """From a sample per segment to one per question, which has its prefix once."""
    total = max(layout.suffix_start for layout in layouts)
    row_QS, slot_QS = torch.zeros(2, len(layouts), total, dtype=torch.long)
    keep_QS = torch.zeros(len(layouts), total, dtype=torch.bool)
    for q, (layout, of_question) in enumerate(zip(layouts, rows, strict=True)):
        keep_QS[q, : layout.suffix_start] = True
        row_QS[q, : layout.prefix_length] = of_question[0]
        slot_QS[q, : layout.prefix_length] = torch.arange(layout.prefix_length)
        for row, (start, end) in zip(of_question, layout.segment_spans, strict=False):
            row_QS[q, start:end] = row
            slot_QS[q, start:end] = layout.prefix_length + torch.arange(end - start)
    device = cache.present.device
    return cache.gather(row_QS.to(device), slot_QS.to(device), keep_QS.to(device), total + more)


def read_pieces(
    model: Llama,
    pieces: Sequence[Piece],
    cache: Cache | None,
    bias: Sequence[BiasTerm] = (),
    tempered: Tempered | None = None,
    written: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Reads a part of each layout, and what was `written` behind it: rows `[batch, tokens, hidden]`, padded."""
    ids_BR, views, _ = prepare_pieces(model, pieces, cache, bias, tempered, written)
    return model.hidden(ids_BR, views, cache)


def prepare_pieces(
    model: Llama,
    pieces: Sequence[Piece],
    cache: Cache | None,
    bias: Sequence[BiasTerm] = (),
    tempered: Tempered | None = None,
    written: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, Views, dict[str, Tensor]]:
    """Tokens, views and labels of such a pass, before it is made."""
    width = max(end - start for _, start, end in pieces)
    shape = (len(pieces), width)
    ids_BR = torch.zeros(shape, dtype=torch.long)
    valid_BR = torch.zeros(shape, dtype=torch.bool)
    place_BR = torch.zeros(shape, dtype=torch.float64)
    label_BR: dict[str, Tensor] = {}
    for b, (layout, start, end) in enumerate(pieces):
        behind = () if written is None else written[b]
        part = slice(0, end - start)
        ids_BR[b, part] = torch.tensor((*layout.token_ids, *behind)[start:end], dtype=torch.long)
        valid_BR[b, part] = True
        place_BR[b, part] = layout.rotary_positions(len(behind))[0, start:end]
        for name, label in layout.labels(len(behind)).items():
            label_BR.setdefault(name, torch.zeros(shape, dtype=torch.long))[b, part] = label[0, start:end]
    device = model.device
    fractional = bool((place_BR != label_BR["position"]).any())
    labels = {name: label.to(device) for name, label in label_BR.items()}
    views = model.prepare(
        segments(),
        labels,
        valid=valid_BR.to(device),
        cache=cache,
        bias=bias,
        tempered=tempered,
        rotary_positions=place_BR.to(device) if fractional else None,
    )
    return ids_BR.to(device), views, labels


def without_suffix(logits_SV: Tensor, weights: Sequence[float]) -> Tensor:
    """Scores `[vocabulary]` of the first token where no row sees all segments yet: the mean of what each scores."""
    if len(logits_SV) == 1:
        return logits_SV[0]
    wide_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    return (wide_SV.new_tensor(weights).unsqueeze(1) * wide_SV.log_softmax(-1)).sum(0)


class AttentionReader(Reader):
    """Answers that look at all segments of their question.

    Args:
        model: the network.
        layouts: one per question.
        weights: of each segment of each question, adding up to 1.
        correction: see `corrected`.
        new_tokens: the longest answer.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Llama,
        layouts: Sequence[FusionLayout],
        weights: Sequence[Sequence[float]],
        correction: Correction,
        new_tokens: int,
    ) -> None:
        self.model = model
        self.layouts = list(layouts)
        self.bias, self.tempered = corrected(layouts, weights, correction)
        suffixes = [layout.length - layout.suffix_start for layout in layouts]
        joined = read_joined(model, layouts, max(suffixes) + new_tokens)
        self.cache, self._passes = joined.cache, joined.passes
        self._behind = joined.cache.capacity - new_tokens  # the slot of the first token of all answers
        self._written = [0] * len(layouts)
        self._logits_QV = self._read_suffixes(suffixes, joined, weights)

    def _read_suffixes(self, lengths: list[int], joined: Joined, weights: Sequence[Sequence[float]]) -> Tensor:
        model, wide = self.model, torch.promote_types(self.model.dtype, torch.float32)
        logits_QV = torch.zeros(len(lengths), model.config.vocab_size, dtype=wide, device=model.device)
        if any(lengths):
            pieces = [(layout, layout.suffix_start, layout.length) for layout in self.layouts]
            hidden_QRE = read_pieces(model, pieces, self.cache, self.bias, self.tempered)
            self._passes += 1
            asked = [q for q, length in enumerate(lengths) if length]
            logits_QV[asked] = model.logits(hidden_QRE[asked, [lengths[q] - 1 for q in asked]]).to(wide)
        for q, length in enumerate(lengths):
            if length == 0:
                ends = [rows[-1:] for rows in joined.segments[q]] or [joined.before[q]]
                logits_QV[q] = without_suffix(model.logits(torch.cat(ends)), weights[q])
        return logits_QV

    @property
    def passes(self) -> int:
        return self._passes

    def first(self) -> Tensor:
        return self._logits_QV

    @torch.no_grad()
    def next(self, tokens: Sequence[int | None]) -> Tensor:
        device, total = self.model.device, len(tokens)
        step = max(self._written)  # all that are not complete have written as many
        ids_Q1 = torch.tensor([[token or 0] for token in tokens], device=device)
        valid_Q1 = torch.tensor([[token is not None] for token in tokens], device=device)
        order = [[layout.length + step] for layout in self.layouts]
        columns = {
            "order": order,
            "part": [[ANSWER]] * total,
            "segment": [[len(layout.segment_spans) + 1] for layout in self.layouts],
            "position": [[layout.next_place + step] for layout in self.layouts],
        }
        views = self.model.prepare(
            not_after("order"),
            {name: torch.tensor(column, device=device) for name, column in columns.items()},
            valid=valid_Q1,
            cache=self.cache,
            slots=torch.full((total, 1), self._behind + step, device=device),
            bias=self.bias,
            tempered=self.tempered,
        )
        hidden_Q1E = self.model.hidden(ids_Q1, views, self.cache)
        self._passes += 1
        self._written = [count + (token is not None) for count, token in zip(self._written, tokens, strict=True)]
        return self.model.logits(hidden_Q1E[:, 0])

    def select(self, questions: Sequence[int]) -> None:
        index_Q = torch.tensor(questions, device=self.model.device)
        self.cache = self.cache.gather(index_Q)
        self._logits_QV = self._logits_QV[index_Q]
        self.layouts = [self.layouts[q] for q in questions]
        self._written = [self._written[q] for q in questions]
        self.bias = [BiasTerm(term.relation, term.value_per_sample(index_Q.device)[index_Q]) for term in self.bias]

    def reorder(self, parents: Sequence[int]) -> None:
        self.cache.reorder(torch.tensor(parents, device=self.model.device), self._behind)


class MaskedReader(Reader):
    """The same as one masked sequence per question, read again for each token; arguments as `AttentionReader`."""

    def __init__(
        self,
        model: Llama,
        layouts: Sequence[FusionLayout],
        weights: Sequence[Sequence[float]],
        correction: Correction,
        new_tokens: int,
    ) -> None:
        self.model = model
        self.layouts = list(layouts)
        self.weights, self.correction = list(weights), correction
        self._passes = 0
        self._written: list[list[int]] = [[] for _ in layouts]

    @property
    def passes(self) -> int:
        return self._passes

    @torch.no_grad()
    def first(self) -> Tensor:
        self._passes += 1
        bias, tempered = corrected(self.layouts, self.weights, self.correction)
        pieces = [
            (layout, 0, layout.length + len(written))
            for layout, written in zip(self.layouts, self._written, strict=True)
        ]
        hidden_QRE = read_pieces(self.model, pieces, None, bias, tempered, self._written)
        rows = []
        for q, (layout, _, end) in enumerate(pieces):
            if end > layout.suffix_start or not layout.segment_spans:
                rows.append(self.model.logits(hidden_QRE[q, end - 1]))
                continue
            ends = [span_end - 1 for _, span_end in layout.segment_spans]
            rows.append(without_suffix(self.model.logits(hidden_QRE[q, ends]), self.weights[q]))
        return torch.stack(rows)

    def next(self, tokens: Sequence[int | None]) -> Tensor:
        for written, token in zip(self._written, tokens, strict=True):
            written += [] if token is None else [token]
        return self.first()

    def select(self, questions: Sequence[int]) -> None:
        self.layouts = [self.layouts[q] for q in questions]
        self.weights = [self.weights[q] for q in questions]
        self.reorder(questions)

    def reorder(self, parents: Sequence[int]) -> None:
        self._written = [list(self._written[parent]) for parent in parents]
