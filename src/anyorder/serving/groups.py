"""Samples of requests in groups that go through the network together, one forward pass at a time.

Here alone serving knows texts and readers. A group takes new samples and loses old ones between any two passes, where
its reader allows that. Samples never see each other, so each gets the tokens that it would get alone.

Shapes: N queries (positions of all samples, sample after sample), V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anyorder.api.output import Finished
from anyorder.api.text import Continuation, Gaps
from anyorder.decoding.any_order.reader import TwoStreamReader
from anyorder.decoding.any_order.text import AnyOrderText
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.checks import not_numbers
from anyorder.decoding.diffusion.reader import CanvasReader
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Choice, Choose, Queries, Reader, Text, by_text
from anyorder.decoding.trace import Recorder, Step, Stop, StopReason, Written
from anyorder.utils.ragged import log_softmax

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama

SMALLEST_CAPACITY = 256
"""Cache slots of a sample at least; more are taken in powers of two."""


class Alternative(NamedTuple):
    """A token that might stand at a position, and the logarithm of its probability by the network's own scores."""

    token_id: int
    log_prob: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is done to the network's scores before a token is chosen, and what is reported of them.

    Attributes:
        bias: added to the score of each of these tokens.
        frequency_penalty: subtracted from the score of a token for each time that it was written.
        presence_penalty: subtracted from the score of a token that was written at all.
        alternatives: number of the most probable tokens that are reported for each token written, by the network's own
            scores; None reports nothing.
    """

    bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    alternatives: int | None = None

    @property
    def changes(self) -> bool:
        """Whether scores change at all."""
        return bool(self.bias or self.frequency_penalty or self.presence_penalty)

    def changed(self, logits_MV: Tensor, written: Sequence[int]) -> Tensor:
        """Return the changed scores of one sample, `[M, V]`, given the tokens that were written in it."""
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32), copy=True)
        added = dict(self.bias)
        if self.frequency_penalty or self.presence_penalty:
            for token_id, count in Counter(written).items():
                penalty = self.presence_penalty + self.frequency_penalty * count
                added[token_id] = added.get(token_id, 0.0) - penalty
        if added:
            logits_MV[:, list(added)] += torch.tensor(list(added.values()), device=logits_MV.device)
        return logits_MV


PLAIN = Scores()


@dataclass(eq=False, kw_only=True)
class Sample:
    """One text of a request while it is written. The engine's thread writes it; others may read it at any time.

    Args:
        text: as decoders have it.
        prompt: token ids, or the canvas.
        prompt_text: as it was given; None where that was token ids.
        spelled: what makes characters of its tokens; None without a tokenizer.
        choose: picks its tokens, those of all samples with the same `choose` together; None where a decoder does.
        kind: samples of one kind can share a group.
        new_group: makes a group of its kind.
        end_token_ids: of the network.
        scores: changes and reports of scores.
        never: a token that is never written, and has no part in what is reported; None where each may be.
        follows: whether the text is spelled while it is written; otherwise at its end.

    Attributes:
        steps: what was written, pass by pass.
        pieces: of the settled text, each final.
        alternatives: by step and position of a token, itself and the most probable tokens there.
        stopped: why the text is complete; None while it is not.
    """

    text: Text
    prompt: Sequence[int]
    prompt_text: str | None
    spelled: Continuation | Gaps | None
    choose: Choose[Any] | None
    kind: Hashable
    new_group: Callable[[], Group]
    end_token_ids: tuple[int, ...]
    scores: Scores = PLAIN
    never: int | None = None
    follows: bool = False
    steps: list[Step] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    alternatives: dict[tuple[int, int], list[Alternative]] = field(default_factory=dict)
    stopped: StopReason | None = None

    @property
    def stop(self) -> Stop | None:
        """The condition to stop, which also spells the text."""
        spelled = self.spelled
        if not self.follows or not isinstance(spelled, Continuation):
            return None
        return lambda _, written: spelled.update(written)

    def take(self, choices: Sequence[Choice], own_logits_MV: Tensor | None, passes: int) -> None:
        """Commit choices, one for each query.

        Args:
            choices: of this pass.
            own_logits_MV: the network's own scores of the same queries, where they are reported.
            passes: forward passes that it took.

        Raises:
            UserError: a log-probability is not a number.
        """
        if any(math.isnan(choice.log_prob) for choice in choices):
            raise not_numbers()
        number = len(self.steps)
        written = self.text.commit(choices)
        if own_logits_MV is not None and written:
            self._note_alternatives(number, choices, written, own_logits_MV)
        stopped = self.text.why_complete(self.stop)
        sample_id = self.text.sample_id
        events = (Written(number, sample_id, one.position, one.token_id, one.log_prob) for one in written)
        self.end_step(Step(tuple(events), {sample_id: stopped} if stopped else {}, passes))

    def end_step(self, step: Step) -> None:
        """Note a step, in which the text has been spelled already."""
        self.steps.append(step)
        stopped = step.stopped.get(self.text.sample_id)
        follows = self.follows and isinstance(self.spelled, Continuation)
        piece = self.spelled.piece(last=bool(stopped)) if follows else ""  # type: ignore[union-attr]
        if piece:
            self.pieces.append(piece)
        self.stopped = stopped

    def _note_alternatives(
        self, step: int, choices: Sequence[Choice], written: Sequence[Choice], own_logits_MV: Tensor
    ) -> None:
        row_of = {choice.position: row for row, choice in enumerate(choices)}
        known = [choice for choice in written if choice.position in row_of]
        if not known:
            return
        logits_MV = own_logits_MV[[row_of[choice.position] for choice in known]]
        if self.never is not None:
            logits_MV[:, self.never] = -torch.inf
        log_probs_MV = log_softmax(logits_MV)
        best = log_probs_MV.topk(min(max(1, self.scores.alternatives or 0), log_probs_MV.shape[1]))
        for choice, own, values, ids in zip(
            known, log_probs_MV, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            itself = Alternative(choice.token_id, float(own[choice.token_id]))
            others = [Alternative(*pair) for pair in zip(ids, values, strict=True)]
            self.alternatives[step, choice.position] = [itself, *others[: self.scores.alternatives or 0]]

    def finished(self, seconds: float) -> Finished:
        """Return the complete text, which took so many seconds."""
        sample_id = self.text.sample_id
        recorder = Recorder([self.prompt], [sample_id], self.end_token_ids)
        for _ in recorder.watch(self.steps):
            pass
        generation = recorder.generation()
        object.__setattr__(generation.trace, "seconds", seconds)
        spelled = None if self.spelled is None else [self.spelled]
        return Finished.of(generation, spelled, [self.prompt_text])


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


class FixedGroup(ReaderGroup):
    """Samples of one request that begin together: their reader takes no others.

    Args:
        reader: of their texts.
    """

    def __init__(self, reader: Reader[Any]) -> None:
        super().__init__()
        self.reader = reader

    @property
    def is_open(self) -> bool:
        return self.reader.passes == 0

    @property
    def passes(self) -> int:
        return self.reader.passes

    def turn(self) -> Sequence[Sample]:
        texts = set(self.reader.next_batch([sample.text for sample in self.samples]))
        return [sample for sample in self.samples if sample.text in texts]

    def logits(self, samples: Sequence[Sample], queries: Queries[Any]) -> Tensor:
        return self.reader.logits(queries)


class Slots:
    """A cache whose first samples are in use, which grows in powers of two.

    Args:
        model: the network.
        labels: names of those that its rows carry.
    """

    def __init__(self, model: Llama, labels: Sequence[str]) -> None:
        self.model = model
        self.labels = labels
        self.cache: Cache | None = None
        self._view: tuple[Cache, int, Cache] | None = None

    def in_use(self, batch: int, tokens: int) -> Cache:
        """Return the first samples, with room for so many tokens: the same view for as long as nothing changes."""
        cache = self.with_room(batch, tokens)
        if self._view is None or self._view[0] is not cache or self._view[1] != batch:
            self._view = (cache, batch, cache.samples(0, batch))
        return self._view[2]

    def with_room(self, batch: int, tokens: int) -> Cache:
        """Return the cache, with room for so many samples of so many tokens at least."""
        old = self.cache
        if old is not None and batch <= old.batch and tokens <= old.capacity:
            return old
        batch, tokens = _bucket(batch, 1), _bucket(tokens, SMALLEST_CAPACITY)
        if old is None:
            self.cache = self.model.new_cache(batch, tokens)
            empty = torch.zeros((batch, 0), dtype=torch.long, device=self.model.device)
            self.cache.put(dict.fromkeys(self.labels, empty))
        else:
            batch, capacity = max(batch, old.batch), max(tokens, old.capacity)
            source = torch.arange(batch, device=self.model.device)
            known = (source < old.batch).unsqueeze(1).expand(batch, old.capacity)
            self.cache = old.gather(source.clamp(max=old.batch - 1), keep=known, capacity=capacity)
        return self.cache

    def free(self, sample: int, last: int) -> None:
        """Free a sample: the last one that is in use takes its place."""
        assert self.cache is not None
        if sample != last:
            self.cache.move(last, sample)
        where = torch.zeros_like(self.cache.present)
        where[last] = True
        self.cache.drop(where)

    def clear(self) -> None:
        """Give the memory back."""
        self.cache = self._view = None


def _bucket(number: int, smallest: int) -> int:
    """The next power of two, at least the smallest."""
    return max(smallest, 1 << (number - 1).bit_length())


class CachedGroup(ReaderGroup):
    """Samples that share a cache, one slot row each: new ones are read by a pass of their own, and then join.

    Args:
        model: the network.
        labels: names of those that rows in the cache carry.
    """

    def __init__(self, model: Llama, labels: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.slots = Slots(model, labels)
        self.fresh: list[Sample] = []

    def join(self, samples: Sequence[Sample]) -> None:
        super().join(samples)
        self.fresh += samples

    def leave(self, sample: Sample) -> None:
        if sample in self.fresh:
            self.fresh.remove(sample)
            self.samples.remove(sample)
            return
        place, last = self.samples.index(sample), len(self.samples) - len(self.fresh) - 1
        self.slots.free(place, last)
        self._swap_out(place, last)
        # Samples keep the order of their slots; those that have none yet come behind.
        self.samples[place] = self.samples[last]
        del self.samples[last]
        if not self.samples:
            self.slots.clear()

    def turn(self) -> Sequence[Sample]:
        return self.fresh or self.samples

    def logits(self, samples: Sequence[Sample], queries: Queries[Any]) -> Tensor:
        if not self.fresh:
            return self.read_on(queries)
        behind = len(self.samples) - len(self.fresh)
        logits_NV = self.read_first([sample.text for sample in self.fresh], behind, queries)
        self.fresh = []
        return logits_NV

    @abstractmethod
    def read_first(self, texts: Sequence[Any], behind: int, queries: Queries[Any]) -> Tensor:
        """Read new texts, whose slots are behind so many that are in use."""

    @abstractmethod
    def read_on(self, queries: Queries[Any]) -> Tensor:
        """Read what is new in all texts."""

    def _swap_out(self, place: int, last: int) -> None:
        """Let the last text that has slots take the place of one that leaves."""


class CausalGroup(CachedGroup):
    """Texts from left to right."""

    def __init__(self, model: Llama) -> None:
        super().__init__(model, ("position",))
        self.reader: CausalReader | None = None
        self._passes = 0

    @property
    def passes(self) -> int:
        return self._passes

    def read_first(self, texts: Sequence[CausalText], behind: int, queries: Queries[Any]) -> Tensor:
        self._passes += 1
        prompts = [tuple(text.tokens) for text in texts]
        different = list(dict.fromkeys(prompts))
        cache = self.slots.with_room(behind + len(texts), max(map(len, prompts)))
        logits_MV = CausalReader(self.model, texts)._read(
            different, cache.samples(behind, behind + len(different))
        )  # fmt: skip
        # Equal prompts, as of several samples of one, are read once and copied; their samples come behind the others.
        number_of = {sample: different.index(prompt) for sample, prompt in zip(self.fresh, prompts, strict=True)}
        first_of = {number: sample for sample, number in reversed(number_of.items())}
        copies = [sample for sample in self.fresh if first_of[number_of[sample]] is not sample]
        for index, sample in enumerate(copies, start=behind + len(different)):
            cache.move(behind + number_of[sample], index)
        self.samples[behind:] = [*(first_of[number] for number in range(len(different))), *copies]
        return logits_MV[list(number_of.values())]

    def read_on(self, queries: Queries[Any]) -> Tensor:
        self._passes += 1
        texts = list(queries)
        cache = self.slots.in_use(len(texts), max(len(text.tokens) for text in texts))
        if self.reader is None or self.reader.cache is not cache or self.reader.texts != texts:
            self.reader = CausalReader(self.model, texts)
            self.reader.cache = cache
        return self.reader.logits(queries)


class TwoStreamGroup(CachedGroup):
    """Canvases that are filled in any order."""

    def __init__(self, model: Llama) -> None:
        super().__init__(model, ("position", "rank", "stream"))
        self.reader = TwoStreamReader(model, [], use_cache=False)
        self.reader.texts = []

    @property
    def passes(self) -> int:
        return self.reader.passes

    def read_first(self, texts: Sequence[AnyOrderText], behind: int, queries: Queries[Any]) -> Tensor:
        reader = TwoStreamReader(self.model, texts, use_cache=False)
        cache = self.slots.with_room(behind + len(texts), max(len(text.tokens) for text in texts))
        reader.cache = cache.samples(behind, behind + len(texts))
        logits_NV = reader.logits(queries)
        self.reader.texts = [*self.reader.texts, *texts]
        self.reader.seen += reader.seen
        self.reader.passes += 1
        return logits_NV

    def read_on(self, queries: Queries[Any]) -> Tensor:
        texts = self.reader.texts
        self.reader.cache = self.slots.in_use(len(texts), max(len(text.tokens) for text in texts))
        return self.reader.logits(queries)

    def _swap_out(self, place: int, last: int) -> None:
        texts = list(self.reader.texts)
        texts[place], self.reader.seen[place] = texts[last], self.reader.seen[last]
        self.reader.texts = texts[:last]
        del self.reader.seen[last]


class CanvasGroup(ReaderGroup):
    """Canvases by diffusion that are read whole in each pass, so that any may join and leave.

    Args:
        new_reader: makes the reader of some of them.
    """

    def __init__(self, new_reader: Callable[[Sequence[Any]], CanvasReader]) -> None:
        super().__init__()
        self.new_reader = new_reader
        self.reader: CanvasReader | None = None
        self._passes = 0

    @property
    def passes(self) -> int:
        return self._passes

    def join(self, samples: Sequence[Sample]) -> None:
        super().join(samples)
        self.reader = None

    def logits(self, samples: Sequence[Sample], queries: Queries[Any]) -> Tensor:
        self._passes += 1
        if self.reader is None:
            self.reader = self.new_reader([sample.text for sample in samples])
        return self.reader.logits(queries)
