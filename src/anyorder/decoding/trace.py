"""The record of a generation: what was written where, at which step and how surely.

Every decoder yields `Step`s; a `Recorder` keeps them, `collect` runs them to the end. Chat, plots, replays
and benchmarks read the `Trace` alone, so it says nothing that only one mode has: a step may write
one token or many, in any order, and a later event at a position is an edit of it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError
from anyorder.utils.json_text import json_text

StopReason = Literal["end", "stop", "length"]

Stop = Callable[[int, Sequence[int]], bool]
"""Given the number of a sample and what is written of it up to the first missing token, whether it is complete."""


class Written(NamedTuple):
    """One token put at one position.

    Attributes:
        step: number of the step, from 0, among those of the prompt's own batch: it does not depend on what was
            written in other batches.
        sample_id: number of the prompt in the whole list of prompts, from 0.
        position: index in the prompt's sequence, prompt included, padding never counted.
        token_id: the token.
        log_prob: natural logarithm of the probability that the decoder chose the token by.
    """

    step: int
    sample_id: int
    position: int
    token_id: int
    log_prob: float


@dataclass(frozen=True)
class Trace:
    """What was written, in the order of writing, and what it cost.

    Attributes:
        events: the tokens written; of two at the same prompt and position the later one counts.
        passes: forward passes of the network, the one over the prompt included.
        seconds: time from the first pass to the last token.
        end_token_ids: tokens that end a text and are no part of it.
        drafted: tokens that were proposed and then judged, where a decoder speculates.
        accepted: those of them that stayed.
    """

    events: tuple[Written, ...]
    passes: int
    seconds: float
    end_token_ids: tuple[int, ...] = ()
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens(self) -> int:
        """Number of positions written before the first end token of each row (padding has no events)."""
        final = {(event.sample_id, event.position): event.token_id for event in self.events}
        end: dict[int, int] = {}
        for (row, position), token_id in final.items():
            if token_id in self.end_token_ids:
                end[row] = min(position, end.get(row, position))
        return sum(row not in end or position < end[row] for row, position in final)

    @property
    def tokens_per_second(self) -> float:
        """`tokens` per second; 0 where no time was measured."""
        return _rate(self.tokens, self.seconds)

    def summary(self) -> str:
        """Return tokens, passes, seconds and tokens per second in a line."""
        return summary(self.tokens, self.passes, self.seconds, self.drafted, self.accepted)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"

    @classmethod
    def join(cls, traces: Sequence[Trace]) -> Trace:
        """Join the traces of batches that were written one after the other."""
        return cls(
            events=tuple(event for trace in traces for event in trace.events),
            passes=sum(trace.passes for trace in traces),
            seconds=sum(trace.seconds for trace in traces),
            end_token_ids=tuple(sorted({end for trace in traces for end in trace.end_token_ids})),
            drafted=sum(trace.drafted for trace in traces),
            accepted=sum(trace.accepted for trace in traces),
        )

    def to_json(self) -> str:
        """Return JSON text, which `from_json` reads back to an equal trace; the logarithm of probability 0 is null."""
        record = {
            "fields": FIELDS,
            "events": self.events,
            "passes": self.passes,
            "seconds": self.seconds,
            "end_token_ids": self.end_token_ids,
            **({"drafted": self.drafted, "accepted": self.accepted} if self.drafted else {}),
        }
        return json_text(record)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Return the trace that `to_json` wrote.

        Raises:
            UserError: the text is not such a trace.
        """
        try:
            record = json.loads(text)
            if tuple(record["fields"]) != FIELDS:
                raise ValueError(f"its events have the fields {record['fields']}")
            events = tuple(_event(event) for event in record["events"])
            passes, seconds = _count(record["passes"]), _number(record["seconds"])
            ends = tuple(_count(end) for end in record["end_token_ids"])
            drafts = {name: _count(record.get(name, 0)) for name in ("drafted", "accepted")}
            steps = 1 + max((event.step for event in events), default=-1)
            if steps > MOST_STEPS:
                raise ValueError(f"it has {steps} steps")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = repr(error)[:200]
            raise UserError(f"the text is no trace ({reason}): give what Trace.to_json wrote.") from error
        return cls(events, passes, seconds, ends, **drafts)


def summary(tokens: int, passes: int, seconds: float, drafted: int = 0, accepted: int = 0) -> str:
    """Return in a line what writing took; the arguments are those of `Trace`."""
    drafts = f", {accepted} of {drafted} drafts accepted" if drafted else ""
    rate = _rate(tokens, seconds)
    return f"{tokens} tokens in {passes} forward passes and {seconds:.2f} s ({rate:.1f} tokens/s){drafts}"


def _rate(number: int, seconds: float) -> float:
    return number / seconds if seconds > 0 else 0.0


FIELDS = ("step", "row", "position", "token_id", "log_prob")
"""The fields of `Written` by their names in files."""

MOST_STEPS = 10**6
"""Of a trace that can be replayed."""

MOST = 2**62
"""The largest whole number of a trace: it fits in 64 bits."""


def _event(values: object) -> Written:
    if not isinstance(values, list):
        raise ValueError(f"{values!r:.50} is no event")
    *places, log_prob = values
    step, sample_id, position, token_id = map(_count, places)
    return Written(step, sample_id, position, token_id, -math.inf if log_prob is None else _number(log_prob))


def _count(value: object) -> int:
    """Return a whole number from 0; JSON's `true` is none."""
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError(f"{value!r:.50} is no whole number from 0 to {MOST}")
    return value


def _number(value: object) -> float:
    """Return a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{value!r:.50} is no finite number")
    return float(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Step:
    """What one step of a decoder wrote.

    Attributes:
        written: the tokens of this step.
        stopped: numbers of the samples that are complete after this step, and why.
        passes: forward passes that the step took.
        drafted, accepted: see `Trace`.
    """

    written: tuple[Written, ...]
    stopped: Mapping[int, StopReason] = field(default_factory=dict)
    passes: int = 1
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Generation:
    """What a decoder made of a batch of prompts, one entry per prompt, without padding.

    Attributes:
        sequences: prompt and what was written, in the order of positions, up to the first gap that was left.
        written: what was written alone, in the order of positions, end token included.
        stopped: why each text is complete: "end" (an end token), "stop" (the caller's condition), "length" (the
            limit of new tokens or the trained length).
        trace: the record of writing.
    """

    sequences: list[list[int]]
    written: list[list[int]]
    stopped: list[StopReason]
    trace: Trace

    @classmethod
    def join(cls, generations: Sequence[Generation]) -> Generation:
        """Join the generations of batches that were written one after the other."""
        return cls(
            sequences=[row for generation in generations for row in generation.sequences],
            written=[row for generation in generations for row in generation.written],
            stopped=[reason for generation in generations for reason in generation.stopped],
            trace=Trace.join([generation.trace for generation in generations]),
        )

    def select(self, entries: Sequence[int]) -> Generation:
        """Select entries by their index, in this order; the trace stays that of all."""
        return dataclasses.replace(
            self,
            sequences=[self.sequences[entry] for entry in entries],
            written=[self.written[entry] for entry in entries],
            stopped=[self.stopped[entry] for entry in entries],
        )


class Recorder:
    """Collects the steps of a decoder while they are used elsewhere.

    Args:
        prompts: token ids of each prompt, or its canvas.
        sample_ids: the number of each prompt, as in the steps' events.
        end_token_ids: tokens that the trace must not count as text.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], end_token_ids: tuple[int, ...]
    ) -> None:
        self._prompts = prompts
        self._sample_ids = sample_ids
        self._end_token_ids = end_token_ids
        self._steps: list[Step] = []
        self._seconds = 0.0

    def watch(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yield each step as soon as it is taken; count the time while steps are taken, not between them."""
        iterator = iter(steps)
        while True:
            started = time.perf_counter()
            step = next(iterator, None)
            self._seconds += time.perf_counter() - started
            if step is None:
                return
            self._steps.append(step)
            yield step

    def generation(self) -> Generation:
        """Return what the steps wrote, which must be all steps of the decoder."""
        tokens: dict[int, dict[int, int]] = {sample_id: {} for sample_id in self._sample_ids}
        stopped: dict[int, StopReason] = {}
        for step in self._steps:
            stopped |= step.stopped
            for event in step.written:
                tokens[event.sample_id][event.position] = event.token_id
        sequences, written = [], []
        for sample_id, prompt in zip(self._sample_ids, self._prompts, strict=True):
            token_at = dict(enumerate(prompt)) | tokens[sample_id]
            sequence: list[int] = []
            while token_at.get(len(sequence), BLANK) != BLANK:
                sequence.append(token_at[len(sequence)])
            sequences.append(sequence)
            written.append([sequence[at] for at in sorted(tokens[sample_id]) if at < len(sequence)])
        trace = Trace(
            events=tuple(event for step in self._steps for event in step.written),
            passes=sum(step.passes for step in self._steps),
            seconds=self._seconds,
            end_token_ids=self._end_token_ids,
            drafted=sum(step.drafted for step in self._steps),
            accepted=sum(step.accepted for step in self._steps),
        )
        return Generation(sequences, written, [stopped[sample_id] for sample_id in self._sample_ids], trace)


def collect(
    steps: Iterable[Step], prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], end_token_ids: tuple[int, ...]
) -> Generation:
    """Run a decoder to its end; the arguments are its steps, and those of `Recorder`."""
    recorder = Recorder(prompts, sample_ids, end_token_ids)
    for _ in recorder.watch(steps):
        pass
    return recorder.generation()
