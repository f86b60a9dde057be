"""Samples of one request that a decoder writes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from anyorder.decoding.canvas import BLANK
from anyorder.decoding.loop import Choice, Text
from anyorder.decoding.trace import Step, Stop
from anyorder.serving.groups.group import Group
from anyorder.serving.groups.sample import Sample


class DecodedText(Text):
    """A text that a decoder writes by itself; here it is only followed."""

    def queries(self) -> Sequence[int]:
        return ()

    def commit(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Write all tokens."""
        for choice in choices:
            self.tokens += [BLANK] * (choice.position + 1 - len(self.tokens))
            self.tokens[choice.position] = choice.token_id
        return choices

    @property
    def remaining(self) -> bool:
        return True


class DecoderGroup(Group):
    """Samples of one request that a decoder writes by itself, step by step.

    Args:
        begin: makes the steps, with a stop condition.
    """

    def __init__(self, begin: Callable[[Stop], Iterator[Step]]) -> None:
        super().__init__()
        self._steps = begin(self._stopped)
        self._passes = 0

    @property
    def is_open(self) -> bool:
        return self._passes == 0

    @property
    def passes(self) -> int:
        return self._passes

    def _stopped(self, sample_id: int, written: Sequence[int]) -> bool:
        """Spell a text, and whether it comes to a stop string; of one that has left, nothing is written any more."""
        for sample in self.samples:
            if sample.text.sample_id == sample_id:
                return sample.stop is not None and sample.stop(sample_id, written)
        return True

    def run_pass(self) -> dict[Sample, Exception | None]:
        step = next(self._steps)
        self._passes += step.passes
        for sample in self.samples:
            sample_id = sample.text.sample_id
            events = [event for event in step.written if event.sample_id == sample_id]
            sample.text.commit([Choice(event.position, event.token_id, event.log_prob, 0.0) for event in events])
            stopped = {sample_id: step.stopped[sample_id]} if sample_id in step.stopped else {}
            drafts = (step.drafted, step.accepted) if sample is self.samples[0] else (0, 0)
            sample.end_step(Step(tuple(events), stopped, step.passes, *drafts))
        errors: dict[Sample, Exception | None] = dict.fromkeys(self.samples)
        self.samples = [sample for sample in self.samples if not sample.stopped]
        return errors
