"""Gaps whose length is not known: filled in several lengths, of which the most probable text is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from anyorder.api.batches import Batches, Watch
from anyorder.api.images import Images
from anyorder.api.output import Finished
from anyorder.api.prompts import Prompt
from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError
from anyorder.likelihood.exact import log_prob
from anyorder.model.modes import ANY_ORDER
from anyorder.modes import Options
from anyorder.orders.plan import GroupPlan
from anyorder.parallel import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama


class LikeliestLengths:
    """Fill the gaps of each prompt in all these lengths, and keep the length whose text is the most probable.

    What is compared is the exact log-probability, from left to right, of all tokens from the beginning of the first gap
    on, given those before it: the gap and, with it, how well the rest follows. So lengths need no correction, as the
    tokens of a longer gap have to be paid for. All gaps of a prompt have the same length.

    Args:
        model, tokenizer, prompt, options: as `Batches` takes them.
        lengths: in tokens.
        images: of the prompts; None where there are none.
        sample_ids: see `Batches`.

    Attributes:
        rows, single: see `Batches`; the rows of the first length.

    Raises:
        UserError: there are no lengths, samples are wanted, or see `Batches` and `log_prob`.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: PreTrainedTokenizerBase | None,
        prompt: Prompt,
        options: Options,
        lengths: Sequence[int],
        images: Images | None = None,
        sample_ids: Sequence[int] | None = None,
    ) -> None:
        if not lengths:
            raise UserError(f"gap_tokens is {lengths!r}: give at least one length.")
        self._lengths = list(lengths)
        self._refuse(num_samples=options.num_samples)
        model.config.mode(ANY_ORDER.name)
        self._model = model if images is None else images.model
        self._by_length = [Batches(model, tokenizer, prompt, options, length, images, sample_ids) for length in lengths]
        self.rows, self.single = self._by_length[0].rows, self._by_length[0].single
        self._sample_ids = range(len(self.rows)) if sample_ids is None else sample_ids

    def write(self, watch: Watch | None = None, processes: Processes | None = None) -> Iterator[Finished]:
        """Write one batch after the other in all lengths.

        Raises:
            UserError: there is a `watch`, which could not tell the lengths apart, or processes that share out prompts.
        """
        self._refuse(watch=watch)
        if processes is not None and processes.mesh["data"].size() > 1:
            raise UserError(
                f"gap_tokens is {self._lengths}, whose texts are not shared out: split the network over all processes "
                f"(tensor_parallel {processes.mesh.size()}), or give one length."
            )
        start = 0
        for of_lengths in zip(*(batches.write() for batches in self._by_length), strict=True):
            stop = start + len(of_lengths[0].generation.sequences)
            yield self._best(of_lengths, range(start, stop))
            start = stop

    def _refuse(self, **options: object) -> None:
        for name, value in options.items():
            if value is not None:
                raise UserError(f"{name} is given with several gap_tokens, {self._lengths}: leave out one of them.")

    def _best(self, of_lengths: Sequence[Finished], rows: range) -> Finished:
        """Return a batch in the best length of each text."""
        scores = [
            self._scores([batches.rows[row] for row in rows], finished.generation.sequences)
            for batches, finished in zip(self._by_length, of_lengths, strict=True)
        ]
        best = [max(range(len(scores)), key=lambda length: scores[length][entry]) for entry in range(len(rows))]
        whole = Finished.join(of_lengths)
        chosen = whole.select([length * len(rows) + entry for entry, length in enumerate(best)])
        events = [
            event
            for row, length in zip(rows, best, strict=True)
            for event in of_lengths[length].generation.trace.events
            if event.sample_id == self._sample_ids[row]
        ]
        trace = dataclasses.replace(
            whole.generation.trace,
            events=tuple(events),
            passes=whole.generation.trace.passes + len(of_lengths),  # and one for each length that scores
        )
        return dataclasses.replace(chosen, generation=dataclasses.replace(chosen.generation, trace=trace))

    def _scores(self, canvases: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each text from its first blank on; without blanks, of its last token."""
        firsts = [
            canvas.index(BLANK) if BLANK in canvas else len(sequence) - 1
            for canvas, sequence in zip(canvases, sequences, strict=True)
        ]
        sequences = [_with_rows(*pair) for pair in zip(canvases, sequences, strict=True)]
        plan = GroupPlan.sequential([len(sequence) for sequence in sequences], given=firsts)
        return log_prob(self._model, sequences, plan).total.tolist()


def _with_rows(canvas: Sequence[int], sequence: Sequence[int]) -> list[int]:
    """Return a text with the rows of images that its canvas has, for which the text has image tokens."""
    filled = [given if given != BLANK else token_id for given, token_id in zip(canvas, sequence, strict=False)]
    return [*filled, *sequence[len(canvas) :]]
