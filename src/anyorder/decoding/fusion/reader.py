"""Scoring the next tokens of questions laid out for fusion.

`AttentionReader` reads suffix and answer over the joined keys of all segments. `MaskedReader` computes the same as one
masked sequence, again for each token: the slow, obvious twin.

Shape suffixes: Q questions, S segments, R tokens of a row, E hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.attention import BiasTerm
from anyorder.decoding.fusion.layout import FusionLayout
from anyorder.decoding.fusion.prefill import Joined, read_joined, read_pieces
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.fusion.weighting import Correction, corrected
from anyorder.visibility import not_after

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


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
        store: keeps what is read of prefixes and segments, and recalls it.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Llama,
        layouts: Sequence[FusionLayout],
        weights: Sequence[Sequence[float]],
        correction: Correction,
        new_tokens: int,
        store: SegmentStore | None = None,
    ) -> None:
        self.model = model
        self.bias, self.tempered = corrected(layouts, weights, correction)
        suffixes = [layout.length - layout.suffix_start for layout in layouts]
        joined = read_joined(model, layouts, max(suffixes) + new_tokens, store)
        self.cache, self._passes = joined.cache, joined.passes
        self._behind = joined.cache.capacity - new_tokens  # the slot of the first token of all answers
        self._written = [0] * len(layouts)
        answers = [
            {name: label[:, layout.length :] for name, label in layout.labels(new_tokens, model.device).items()}
            for layout in layouts
        ]
        # Of the tokens of all answers, as if each were the longest: each label `[questions, new_tokens]`.
        self._answers = {name: torch.cat([own[name] for own in answers]) for name in answers[0]}
        self._logits_QV = self._read_suffixes(layouts, suffixes, joined, weights)

    def _read_suffixes(
        self, layouts: Sequence[FusionLayout], lengths: list[int], joined: Joined, weights: Sequence[Sequence[float]]
    ) -> Tensor:  # fmt: skip
        model, wide = self.model, torch.promote_types(self.model.dtype, torch.float32)
        logits_QV = torch.zeros(len(lengths), model.config.vocab_size, dtype=wide, device=model.device)
        if any(lengths):
            pieces = [(layout, layout.suffix_start, layout.length) for layout in layouts]
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
        device = self.model.device
        step = max(self._written)  # all that are not complete have written as many
        ids_Q1 = torch.tensor([[token or 0] for token in tokens], device=device)
        valid_Q1 = torch.tensor([[token is not None] for token in tokens], device=device)
        views = self.model.prepare(
            not_after("order"),  # which `segments` is for an answer, and a plain kernel can be told from
            {name: label_QA[:, step : step + 1] for name, label_QA in self._answers.items()},
            valid=valid_Q1,
            cache=self.cache,
            slots=torch.full_like(ids_Q1, self._behind + step),
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
        self._written = [self._written[q] for q in questions]
        self._answers = {name: label_QA[index_Q] for name, label_QA in self._answers.items()}
        self.bias = [BiasTerm(term.relation, term.value_per_sample(index_Q.device)[index_Q]) for term in self.bias]

    def reorder(self, parents: Sequence[int]) -> None:
        self.cache.reorder(torch.tensor(parents, device=self.model.device), self._behind)


class MaskedReader(Reader):
    """The same as one masked sequence per question, read again for each token; see `AttentionReader`."""

    def __init__(
        self,
        model: Llama,
        layouts: Sequence[FusionLayout],
        weights: Sequence[Sequence[float]],
        correction: Correction,
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
