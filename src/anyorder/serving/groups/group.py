"""What all groups have in common, and those have that read and write their texts here.

Shapes: N queries (positions of all samples, sample after sample), M of one sample, V tokens of the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyorder.decoding.loop import Choose, Queries, by_text
from anyorder.serving.groups.sample import Sample


class Group(ABC):
    """Samples that go through the network together.

    Attributes:
        samples: those that are being written.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    @property
    def is_open(self) -> bool:
        """Whether samples can join now."""
        return True

    def join(self, samples: Sequence[Sample]) -> None:
        """Take samples, which the next pass reads."""
        self.samples += samples

    def leave(self, sample: Sample) -> None:
        """Let go of a sample, complete or not."""
        self.samples.remove(sample)

    @property
    @abstractmethod
    def passes(self) -> int:
        """Forward passes so far."""

    @abstractmethod
    def run_pass(self) -> dict[Sample, Exception | None]:
        """Run one pass and write what it predicts; samples that are complete then leave.

        Returns:
            The samples that took part, each with what went wrong with it alone.
        """


class ReaderGroup(Group):
    """Samples whose texts are read and written here, by one pass of a reader a step."""

    def turn(self) -> Sequence[Sample]:
        """Select the samples of the next pass; all unless overridden."""
        return self.samples

    @abstractmethod
    def logits(self, samples: Sequence[Sample], queries: Queries[Any]) -> Tensor:
        """Run a pass over these samples; return logits `[N, V]`, query after query."""

    @torch.no_grad()
    def run_pass(self) -> dict[Sample, Exception | None]:
        samples = list(self.turn())
        queries = {sample.text: sample.text.queries() for sample in samples}
        before = self.passes
        logits_NV = self.logits(samples, queries)
        passes = self.passes - before
        span_of, start = {}, 0
        for sample in samples:
            span_of[sample] = slice(start, start := start + len(queries[sample.text]))
        own_of = {
            sample: logits_NV[span_of[sample]] for sample in samples if sample.scores.alternatives is not None
        }  # fmt: skip
        errors: dict[Sample, Exception | None] = {}
        for choose, together in _by_choose(samples).items():
            changed = any(sample.scores.changes for sample in together)
            if len(together) < len(samples) or changed:
                parts = [_changed(sample, logits_NV[span_of[sample]]) for sample in together]
                scores_MV = torch.cat(parts)
            else:
                scores_MV = logits_NV
            of_choose = {sample.text: queries[sample.text] for sample in together}
            for sample, (_, choices) in zip(together, by_text(choose(scores_MV, of_choose), of_choose), strict=True):
                try:
                    sample.take(choices, own_of.get(sample), passes)
                    errors[sample] = None
                except Exception as error:
                    errors[sample] = error
        for sample, problem in errors.items():
            if sample.stopped or problem is not None:
                self.leave(sample)
        return errors


def _by_choose(samples: Sequence[Sample]) -> dict[Choose[Any], list[Sample]]:
    together: dict[Choose[Any], list[Sample]] = {}
    for sample in samples:
        assert sample.choose is not None, "only decoders choose themselves"
        together.setdefault(sample.choose, []).append(sample)
    return together


def _changed(sample: Sample, logits_MV: Tensor) -> Tensor:
    if not sample.scores.changes:
        return logits_MV
    text = sample.text
    return sample.scores.changed(logits_MV, [token_id for token_id in text.tokens[text.first :] if token_id >= 0])
