"""What writing gives: the whole of it, or its pieces while it is written."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from anyorder.api.text import Continuation, Gaps
from anyorder.decoding.trace import Generation, Recorder, Step, StopReason, Trace
from anyorder.errors import UserError


@dataclass(frozen=True)
class Output:
    """What `generate` wrote.

    Attributes:
        text: the continuation, such that prompt + text reads on; a string for a single prompt, a list of strings for a
            batch, None without a tokenizer. It ends before the end token, before a stop string, and before bytes at
            the end that are no whole character. With `num_samples`, a list of strings stands for each string. Of a
            prompt with a gap it is the text of the gap; of several gaps, the text of each, with `[...]` between them.
        token_ids: all that was written, end token and stop string included: a list of ids for a single prompt, a
            list of such lists for a batch. With `num_samples`, a list of such lists stands for each of them.
        sequences: prompt and all that was written, one list of ids per text, without padding. Samples of one prompt
            follow each other. The rows of the trace are counted like this, too.
        stopped: why each text ended: "end" (end token), "stop" (stop string) or "length".
        trace: what was written where, at which step and how surely; time and passes.
    """

    text: str | list[Any] | None
    token_ids: list[Any]
    sequences: list[list[int]]
    stopped: list[StopReason]
    trace: Trace

    @property
    def passes(self) -> int:
        """Forward passes of the network."""
        return self.trace.passes


class Stream(Iterator[str]):
    """The pieces of a text while it is written; what is never asked for is never computed.

    Joined, the pieces are the text that `generate` gives. A piece is one or more whole characters, and no part of a
    stop string.
    """

    def __init__(self, pieces: Generator[str, None, Output]) -> None:
        self._pieces = pieces
        self._output: Output | None = None

    def __next__(self) -> str:
        """The next piece, as soon as it is written."""
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._output = end.value or self._output
            raise

    def close(self) -> None:
        """Stops writing, as happens to a stream that nobody holds any more."""
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


def pieces(steps: Iterator[Step], recorder: Recorder, text: Continuation) -> Generator[str, None, Output]:
    """Yield the text of a single prompt as its steps are taken, and return its output."""
    for step in recorder.watch(steps):
        if piece := text.piece(last=bool(step.stopped)):
            yield piece
    return output_of(recorder.generation(), [text], single=True)


def output_of(
    generation: Generation, texts: Sequence[Continuation | Gaps] | None, *, single: bool, num_samples: int | None = None
) -> Output:
    """Read the texts of a generation, and give it the form of the prompt.

    Args:
        generation: one entry per text.
        texts: of each text, nothing read yet; None without a tokenizer.
        single: whether a single prompt was given, not a list.
        num_samples: texts per prompt, where a list of them stands for each prompt.
    """

    def formed(rows: list[Any]) -> Any:
        if num_samples is not None:
            rows = [rows[start : start + num_samples] for start in range(0, len(rows), num_samples)]
        return rows[0] if single else rows

    ends = generation.trace.end_token_ids
    for text, written in zip(texts or (), generation.written, strict=texts is not None):
        whole = isinstance(text, Gaps)
        text.read(written if whole else list(itertools.takewhile(lambda token_id: token_id not in ends, written)))
    return Output(
        text=None if texts is None else formed([text.text for text in texts]),
        token_ids=formed(generation.written),
        sequences=generation.sequences,
        stopped=generation.stopped,
        trace=generation.trace,
    )
