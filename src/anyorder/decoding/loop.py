"""The decoding loop of every mode: ask, choose, write, stop.

A `Text` says which positions to predict and which of the choices to write. A `Reader` runs the network: it decides
which rows go through it and which keys are kept. `choose` turns logits into tokens. A new mode is a text and
a reader; this loop stays as it is. (Compiled bursts, speculation and beam search have loops of their own, over the same
texts and readers.)

Shapes: N queries (positions of all texts, text after text), V tokens of the vocabulary.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from anyorder.decoding.canvas import BLANK
from anyorder.decoding.checks import not_numbers
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop, StopReason, Written


class Choice(NamedTuple):
    """A token chosen for a position.

    Attributes:
        position: index in the text.
        token_id: the token.
        log_prob: natural logarithm of the probability that the token was chosen by.
        confidence: ranks the choices of a text, where it does not commit all of them; the highest first.
    """

    position: int
    token_id: int
    log_prob: float
    confidence: float


class Text(ABC):
    """One sample of a batch, from prompt or canvas to the complete text.

    Subclasses say which positions to predict next (`queries`), which choices to write (`commit`) and whether anything
    remains (`remaining`). When a text is complete is decided here, for every mode.

    Args:
        sample_id: number of the prompt in the whole list of prompts; names the text in traces and messages.
        tokens: the prompt, or a canvas with `BLANK` where a token is to be written.
        rng: source of the random draws of this text alone.
        end_token_ids: tokens that end a text.

    Attributes:
        tokens: `BLANK` where nothing is written yet.
        first: the first position to be written.
        continues: whether nothing given follows `first`. Only such a text ends at an end token or a stop condition;
            one with a gap is written to its last blank.
    """

    def __init__(
        self, sample_id: int, tokens: Sequence[int], rng: torch.Generator, end_token_ids: Sequence[int] = ()
    ) -> None:
        self.sample_id = sample_id
        self.tokens = list(tokens)
        self.rng = rng
        self.end_token_ids = end_token_ids
        self.first = self.tokens.index(BLANK) if BLANK in self.tokens else len(self.tokens)
        self.continues = all(token_id == BLANK for token_id in self.tokens[self.first :])
        self._front = self.first
        self._judged: list[int] = []

    # ---- what a mode defines ----

    @abstractmethod
    def queries(self) -> Sequence[int]:
        """Return the positions to predict in the next pass; the same until the next `commit`."""

    @abstractmethod
    def commit(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Write some of the choices into `tokens`, and return those.

        Args:
            choices: one for each position of `queries`, in the same order.
        """

    @property
    @abstractmethod
    def remaining(self) -> bool:
        """Whether anything is still to be written."""

    @property
    def settled(self) -> bool:
        """Whether the text up to its first blank is final at this moment, so that it may be judged."""
        return True

    @property
    def ends_early(self) -> bool:
        """Whether an end token completes the text at this moment, although blanks remain behind it."""
        return True

    @property
    def history(self) -> list[int]:
        """The tokens so far, in the order of positions, without blanks."""
        return [token_id for token_id in self.tokens if token_id != BLANK]

    # ---- the one stop rule ----

    def why_complete(self, stop: Stop | None) -> StopReason | None:
        """Return why nothing more is to be written, or None while something is.

        Args:
            stop: called with `sample_id` and what is written up to the first blank or end token, whenever that has
                changed.
        """
        end = self._end()
        if self.continues and self.settled:
            if stop is not None:
                written = self.tokens[self.first : self._front]
                if written != self._judged:
                    self._judged = written
                    if stop(self.sample_id, written):
                        return "stop"
            if end and self.ends_early:
                return "end"
        if self.remaining:
            return None
        return "end" if self.continues and end else "length"

    def reread(self) -> None:
        """Search for the end token from the first position again: for texts whose written tokens change."""
        self._front = self.first

    def _end(self) -> bool:
        """Advance to the first blank or end token; return whether it is an end token."""
        while self._front < len(self.tokens) and self.tokens[self._front] != BLANK:
            if self.tokens[self._front] in self.end_token_ids:
                return True
            self._front += 1
        return False


TextT = TypeVar("TextT", bound=Text)

Queries = Mapping[TextT, Sequence[int]]
"""The positions to predict, of each text of a pass."""


class Choices(NamedTuple):
    """A token for each query: the fields of `Choice` as tensors, each `[N]`."""

    token_ids: Tensor
    log_probs: Tensor
    confidence: Tensor


Choose = Callable[[Tensor, Queries[TextT]], Choices]
"""Choose a token for each query, from logits `[N, V]`."""


class Reader(ABC, Generic[TextT]):
    """Runs the network over the texts of one batch, which it was made for.

    Attributes:
        passes: forward passes so far, which `logits` counts.
    """

    passes = 0

    @abstractmethod
    def logits(self, queries: Queries[TextT]) -> Tensor:
        """Run one pass and return logits `[N, V]`, query after query.

        Args:
            queries: of the texts of this pass; texts of the batch that are not among them rest or are complete.
        """

    def next_batch(self, writing: Sequence[TextT]) -> Sequence[TextT]:
        """Select which of the incomplete texts take part in the next pass, at least one; all unless overridden."""
        return writing


@torch.no_grad()
def decode(
    texts: Sequence[TextT], reader: Reader[TextT], choose: Choose[TextT], stop: Stop | None, first_step: int = 0
) -> Iterator[Step]:
    """Write texts to their end; yield each step as soon as it is taken.

    Args:
        texts: incomplete texts of the reader's batch.
        reader: runs the network.
        choose: picks a token for each query.
        stop: see `Text.why_complete`.
        first_step: number of the first step, in the trace.

    Raises:
        UserError: the logits are not numbers.
    """
    writing, passes = list(texts), reader.passes
    for number in itertools.count(first_step):
        queries = {text: text.queries() for text in reader.next_batch(writing)}
        choices = choose(reader.logits(queries), queries)
        step = write_step(number, by_text(choices, queries), stop, reader.passes - passes)
        yield step
        passes = reader.passes
        writing = [text for text in writing if text.sample_id not in step.stopped]
        if not writing:
            return


def write_step(
    number: int, choices: Iterable[tuple[TextT, Sequence[Choice]]], stop: Stop | None, passes: int = 1
) -> Step:
    """Commit the choices of each text, and find out which texts are complete.

    Raises:
        UserError: a log-probability is not a number.
    """
    written: list[Written] = []
    stopped: dict[int, StopReason] = {}
    for text, of_text in choices:
        if any(math.isnan(choice.log_prob) for choice in of_text):
            raise not_numbers(f" for row {text.sample_id}")
        for position, token_id, log_prob, _ in text.commit(of_text):
            written.append(Written(number, text.sample_id, position, token_id, log_prob))
        if why := text.why_complete(stop):
            stopped[text.sample_id] = why
    return Step(tuple(written), stopped, passes)


def by_text(choices: Choices, queries: Queries[TextT]) -> Iterator[tuple[TextT, list[Choice]]]:
    """Yield each text with its choices."""
    columns = zip(choices.token_ids.tolist(), choices.log_probs.tolist(), choices.confidence.tolist(), strict=True)
    for text, positions in queries.items():
        yield text, [Choice(at, *next(columns)) for at in positions]


def by_sampling(sampling: Sampling) -> Choose[TextT]:
    """Choose each token by `Sampling`; its log-probability is its confidence."""

    def choose(logits_NV: Tensor, queries: Queries[TextT]) -> Choices:
        texts = [text for text, positions in queries.items() for _ in positions]
        history = None if sampling.repetition_penalty == 1 else [text.history for text in texts]
        token_ids, log_probs = sampling.choose(logits_NV, [text.rng for text in texts], history)
        return Choices(token_ids, log_probs, log_probs)

    return choose
