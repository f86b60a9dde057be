"""What writing gives: the whole of it, or its pieces while it is written."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from anyorder.api.text import GAP, GAPS, Continuation, Gaps, filled, spell
from anyorder.decoding.trace import Generation, Recorder, Step, StopReason, Trace
from anyorder.errors import UserError
from anyorder.utils.reprs import counted, shortened


@dataclass(frozen=True)
class Output:
    """What `generate` wrote.

    Attributes:
        text: the continuation, such that prompt + text reads on; a string for a single prompt, a list of strings for a
            batch, None without a tokenizer. It ends before the end token, before a stop string, and before bytes at
            the end that are no whole character. With `num_samples`, each entry is a list of strings. Of a
            prompt with a gap it is the text of the gap; of several gaps, the text of each, with `[...]` between them.
        full_text: the whole text, prompt and all, in the form of `text`: the prompt as it was given, its gaps filled
            and followed by what continues it. Of token ids it is their text without special tokens.
        token_ids: all that was written, end token and stop string included: a list of ids for a single prompt, a
            list of such lists for a batch. With `num_samples`, each entry is a list of such lists.
        sequences: prompt and all that was written, one list of ids per text, without padding. Samples of one prompt
            follow each other. The rows of the trace are counted like this, too.
        stopped: why each text ended: "end" (end token), "stop" (stop string) or "length".
        trace: what was written where, at which step and how surely; time and passes.
    """

    text: str | list[Any] | None
    full_text: str | list[Any] | None
    token_ids: list[Any]
    sequences: list[list[int]]
    stopped: list[StopReason]
    trace: Trace

    @property
    def passes(self) -> int:
        """Forward passes of the network."""
        return self.trace.passes

    def __repr__(self) -> str:
        first: Any = self.token_ids if self.text is None else self.text
        while isinstance(first, list) and first and not isinstance(first[0], int):
            first = first[0]
        others = len(self.sequences) - 1
        reasons = ", ".join(f"{self.stopped.count(why):,} by {why}" for why in dict.fromkeys(self.stopped))
        return "\n".join(
            [
                f"{type(self).__name__} of {counted(len(self.sequences), 'text')}: {self.trace.summary()}",
                f"  {'token_ids' if self.text is None else 'text'}: "
                f"{shortened(first) if isinstance(first, str) else reprlib.repr(first)}"
                + (f" and {others:,} more" if others else ""),
                f"  stopped: {reasons if others else self.stopped[0]}",
            ]
        )


class Stream(Iterator[str]):
    """The pieces of a text while it is written, each computed when it is requested.

    Joined, the pieces are the text that `generate` gives. A piece is one or more whole characters, and no part of a
    stop string.
    """

    def __init__(self, pieces: Generator[str, None, Output]) -> None:
        self._pieces = pieces
        self._output: Output | None = None
        self._given = 0

    def __repr__(self) -> str:
        so_far = "not complete" if self._output is None else self._output.trace.summary()
        return f"{type(self).__name__} of {counted(self._given, 'piece')} so far, {so_far}"

    def __next__(self) -> str:
        """Return the next piece, as soon as it is written."""
        try:
            piece = next(self._pieces)
            self._given += 1
            return piece
        except StopIteration as end:
            self._output = end.value or self._output
            raise

    def close(self) -> None:
        """Stop writing, as when the stream is garbage-collected."""
        self._pieces.close()

    @property
    def output(self) -> Output:
        """What `generate` would have returned.

        Raises:
            UserError: the text is not complete.
        """
        if self._output is None:
            raise UserError("the output of this stream is not complete: read its pieces to the end first.")
        return self._output


@dataclass(frozen=True)
class Finished:
    """A batch that is written, one entry per text.

    Attributes:
        generation: token ids and trace.
        texts: see `Output.text`; None without a tokenizer.
        full_texts: see `Output.full_text`; likewise.
    """

    generation: Generation
    texts: list[str] | None
    full_texts: list[str] | None

    @classmethod
    def of(
        cls,
        generation: Generation,
        texts: Sequence[Continuation | Gaps] | None,
        prompts: Sequence[str | None] | None = None,
    ) -> Finished:
        """Read the texts of a generation.

        Args:
            generation: one entry per text.
            texts: of each text, not read to the end yet; None without a tokenizer.
            prompts: as given, None for token ids; all are token ids unless given.
        """
        if texts is None:
            return cls(generation, None, None)
        ends = generation.trace.end_token_ids
        for text, written in zip(texts, generation.written, strict=True):
            whole = isinstance(text, Gaps)
            text.update(written if whole else list(itertools.takewhile(lambda token_id: token_id not in ends, written)))
        rows = zip(texts, prompts or [None] * len(texts), generation.sequences, generation.written, strict=True)
        full_texts = [_full_text(*row) for row in rows]
        return cls(generation, [text.text for text in texts], full_texts)

    @classmethod
    def join(cls, batches: Sequence[Finished]) -> Finished:
        """Join batches to one."""

        def of(name: str) -> list[str] | None:
            columns = [getattr(batch, name) for batch in batches]
            return None if None in columns else [text for column in columns for text in column]

        return cls(Generation.join([batch.generation for batch in batches]), of("texts"), of("full_texts"))

    def select(self, entries: Sequence[int]) -> Finished:
        """Select entries by their index, in this order; the trace stays that of all."""
        texts, full_texts = (
            None if column is None else [column[entry] for entry in entries] for column in (self.texts, self.full_texts)
        )
        return Finished(self.generation.select(entries), texts, full_texts)

    def output(self, *, single: bool, num_samples: int | None = None) -> Output:
        """Return the output in the form of the prompt.

        Args:
            single: whether a single prompt was given, not a list.
            num_samples: texts per prompt; each entry of the output is then a list of so many.
        """

        def formed(rows: list[Any]) -> Any:
            if num_samples is not None:
                rows = [rows[start : start + num_samples] for start in range(0, len(rows), num_samples)]
            return rows[0] if single else rows

        return Output(
            text=None if self.texts is None else formed(self.texts),
            full_text=None if self.full_texts is None else formed(self.full_texts),
            token_ids=formed(self.generation.written),
            sequences=self.generation.sequences,
            stopped=self.generation.stopped,
            trace=self.generation.trace,
        )


def _full_text(
    text: Continuation | Gaps, prompt: str | None, sequence: Sequence[int], written: Sequence[int]
) -> str:  # fmt: skip
    """Return a prompt with what was written: as it was given, or where it is token ids, their text."""
    if prompt is not None and GAP not in prompt:
        return prompt + text.text
    parts = text.parts if isinstance(text, Gaps) else [text.text]
    # Some tokenizers drop the text between two gaps, which are one then.
    if prompt is not None and len(parts) == len(GAPS.findall(prompt)):
        return filled(prompt, parts)
    if isinstance(text, Gaps):
        return text.whole
    return spell(text.tokenizer, sequence[: len(sequence) - len(written)]) + text.text


def pieces(
    steps: Iterator[Step], recorder: Recorder, text: Continuation, prompt: str | None = None
) -> Generator[str, None, Output]:
    """Yield the text of a single prompt as its steps are taken, and return its output."""
    for step in recorder.watch(steps):
        if piece := text.piece(last=bool(step.stopped)):
            yield piece
    return Finished.of(recorder.generation(), [text], [prompt]).output(single=True)
