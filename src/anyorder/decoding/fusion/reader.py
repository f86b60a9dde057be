"""Logits of the next token of answers that see all phrasings of their questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.decoding.fusion.layout import ANSWER
from anyorder.decoding.fusion.prefill import masked_pass, next_logits, prefill
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText

if TYPE_CHECKING:
    from anyorder.decoding.fusion.question import Fusion, Question
    from anyorder.decoding.fusion.store import SegmentStore
    from anyorder.model.llama import Llama


class FusedReader(CausalReader):
    """Reads answers as `CausalReader` reads texts, over the joined keys of their questions and with a bias.

    Args:
        model: the network.
        texts: the batch; the prompt of each is the layout of its question.
        questions: the question of each text; equal ones are read once.
        fusion: the positions and the correction.
        use_cache: False reads question and answer again for each token, as one masked sequence.
        store: keeps and recalls the keys of prefixes and segments.
    """

    def __init__(
        self, model: Llama, texts: Sequence[CausalText], questions: Sequence[Question], fusion: Fusion, *,
        use_cache: bool = True, store: SegmentStore | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, texts, use_cache=use_cache)
        self.question_of = dict(zip(texts, questions, strict=True))
        self.fusion = fusion
        self.store = store

    @property
    def cacheable(self) -> int:
        """Tokens of a text up to which it can be read from a cache: all, as positions are limited, not tokens."""
        return self.capacity

    def _position(self, text: CausalText) -> int:
        layout = self.question_of[text].layout(self.fusion.positions)
        return layout.next_place + len(text.tokens) - text.first - 1

    def _prefill(self) -> Tensor:
        questions = list(dict.fromkeys(self.question_of.values()))
        new_tokens = max(text.limit - text.first for text in self.texts)
        read = prefill(self.model, questions, self.fusion, new_tokens, self.store)
        self.passes += read.passes - 1  # of which one is counted already
        copies = torch.tensor([questions.index(question) for question in self.question_of.values()])
        copies = copies.to(self.model.device)
        self.cache = read.cache if len(questions) == len(copies) else read.cache.gather(copies)
        self.corrections = read.corrections.select(copies)
        counts = [[len(question.segments)] for question in self.question_of.values()]
        segment_B1 = torch.tensor(counts, device=self.model.device) + 1
        self.labels = {"part": torch.full_like(segment_B1, ANSWER), "segment": segment_B1}
        return read.logits[copies]

    def _reread(self, texts: Sequence[CausalText]) -> Tensor:
        questions = [self.question_of[text] for text in texts]
        answers = [text.tokens[text.first :] for text in texts]
        rows, views = masked_pass(self.model, questions, self.fusion, answers)
        last = []
        for hidden_RE, question, answer in zip(self.model.hidden(rows.ids, views), questions, answers, strict=True):
            layout = question.layout(self.fusion.positions)
            behind = question.suffix or answer or not question.segments
            ends = [layout.length + len(answer)] if behind else [end for _, end in layout.segment_spans]
            last.append(hidden_RE[[end - 1 for end in ends]])
        return next_logits(self.model, questions, last)
