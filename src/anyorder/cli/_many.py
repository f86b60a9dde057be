"""A file of prompts, whose texts are printed, or kept in a file that a later run resumes."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from anyorder.api.batches import Batches
from anyorder.api.gap_lengths import LikeliestLengths
from anyorder.api.generate import compiles
from anyorder.api.images import seen
from anyorder.api.output import Finished, Output
from anyorder.cli._console import PlainConsole
from anyorder.cli._kept import kept
from anyorder.cli._options import OutputOptions, WritingOptions
from anyorder.cli._processes import is_first
from anyorder.cli._prompts import GivenPrompt, has_gap
from anyorder.cli._results import Results, write_trace
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import summary
from anyorder.modes import Options
from anyorder.serving.many import ManyPrompts, named
from anyorder.utils.progress import TextProgress

if TYPE_CHECKING:
    from anyorder.model.llama import Llama
    from anyorder.parallel import Processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """How the texts of a file of prompts are written.

    Args:
        model, tokenizer: the network and its tokenizer.
        options: how texts are written.
        gap_tokens: tokens of each gap, or several lengths to choose from; None for `max_new_tokens`.
        images: that each prompt has.
        processes: which share out the prompts; None for one process alone.
    """

    model: Llama
    tokenizer: Any
    options: Options
    gap_tokens: int | list[int] | None = None
    images: list[str] | None = None
    processes: Processes | None = None

    def writer(self) -> ManyPrompts | Chunks:
        """Return what writes prompts: the engine, or batch after batch what it does not write."""
        if (
            self.processes is not None or self.options.num_beams > 1 or self.options.compile is True
            or isinstance(self.gap_tokens, list)
        ):  # fmt: skip
            return Chunks(self)
        return ManyPrompts(
            self.model, self.tokenizer, self.options, gap_tokens=self.gap_tokens, images=self.images
        )  # fmt: skip


class Chunks:
    """Writes prompts batch after batch, each of which ends with its longest text.

    Attributes:
        passes: forward passes so far.
    """

    def __init__(self, how: Writing) -> None:
        self._how = how
        self.passes = 0

    def write(self, prompts: Iterable[tuple[Any, str]], first: int = 0) -> Generator[Output]:
        """Yield the texts of each batch of prompts, in order; arguments and errors as of `ManyPrompts.write`."""
        options, processes = self._how.options, self._how.processes
        samples, shares = options.num_samples or 1, 1 if processes is None else processes.mesh["data"].size()
        size = max(1, (options.batch_size or 1) // samples) * shares
        remaining = iter(prompts)
        while chunk := list(itertools.islice(remaining, size)):
            batches = self._batches(chunk, range(first * samples, (first + len(chunk)) * samples))
            finished = list(batches.write(None, processes))
            if processes is not None:
                finished = processes.in_order(processes.shares(finished))
            first += len(chunk)
            out = Finished.join(finished).output(single=False)
            self.passes += out.passes
            yield out

    def _batches(self, chunk: list[tuple[Any, str]], sample_ids: range) -> Batches | LikeliestLengths:
        how = self._how
        prompts, of_each = [prompt for prompt, _ in chunk], None if how.images is None else [how.images] * len(chunk)
        with named([place for _, place in chunk]):
            prompts, images = seen(how.model, how.tokenizer, prompts, of_each)
            gaps = any(isinstance(prompt, str) and has_gap(prompt) for prompt, _ in chunk)
            if isinstance(how.gap_tokens, list) and gaps:
                return LikeliestLengths(
                    how.model, how.tokenizer, prompts, how.options, how.gap_tokens, images, sample_ids
                )  # fmt: skip
            length = how.gap_tokens if gaps and isinstance(how.gap_tokens, int) else None
            return Batches(how.model, how.tokenizer, prompts, how.options, length, images, sample_ids)


def options_from(model: Llama, given: Mapping[str, Any], writing: WritingOptions) -> Options:
    """Return the keywords that `anyorder.generate` takes as records."""
    of_sampling = {field.name for field in dataclasses.fields(Sampling)}
    return Options(
        sampling=Sampling(**{name: value for name, value in given.items() if name in of_sampling}),
        order=given["order"], max_new_tokens=given["max_new_tokens"], stop=given["stop"],
        num_samples=writing.num_samples, num_beams=writing.num_beams, batch_size=writing.batch_size,
        compile=compiles(model, given["compile"]),
    )  # fmt: skip


def write_many(
    how: Writing, prompts: Collection[GivenPrompt], notes: PlainConsole, output: OutputOptions,
    settings: Mapping[str, Any],
) -> str:  # fmt: skip
    """Write the texts of prompts, in their order, each as soon as those before it are complete.

    After Ctrl-C what was written stays, and the trace file has what is finished.

    Args:
        how: how they are written.
        prompts: which are gone through once.
        notes: standard error.
        output: where to, and in what form.
        settings: whatever the texts depend on besides the prompts.

    Returns:
        What it took, in a line.

    Raises:
        UserError: a prompt that cannot be, or a file that cannot be resumed.
    """
    num_samples = how.options.num_samples
    samples, started, tokens, drafts = num_samples or 1, time.perf_counter(), 0, [0, 0]
    total = len(prompts) * samples
    writer = how.writer()
    with _opened(how, output, settings, iter(prompts), samples) as (file, done, remaining):
        results = Results(
            num_samples, json=output.json or file is not None, keeps=output.trace is not None, file=file,
            count=done * samples,
        )  # fmt: skip
        ahead, own = itertools.tee(remaining)
        outputs = writer.write(((given.prompt, given.place) for given in ahead), done)
        try:
            with TextProgress(total, notes, results.count) as bar, closing(outputs):
                for out in outputs:
                    texts = list(itertools.islice(own, len(out.sequences) // samples))
                    with bar.aside() if file is None else nullcontext():
                        results.write(texts, out)
                    bar.advance(len(out.sequences), len(out.trace.events))
                    tokens += out.trace.tokens
                    drafts = [drafts[0] + out.trace.drafted, drafts[1] + out.trace.accepted]
        except KeyboardInterrupt:
            if results.count:
                notes.print(f"\n{results.count} of {total} texts are finished", soft_wrap=True)
            if results.kept and output.trace is not None:
                write_trace(output.trace, results.kept, how.tokenizer, writer.passes)
            raise
    if output.trace is not None and is_first():
        write_trace(output.trace, results.kept, how.tokenizer, writer.passes)
    return summary(tokens, writer.passes, time.perf_counter() - started, *drafts)


@contextmanager
def _opened(
    how: Writing, output: OutputOptions, settings: Mapping[str, Any], prompts: Iterator[GivenPrompt], samples: int
) -> Iterator[tuple[TextIO | None, int, Iterator[GivenPrompt]]]:
    """Provide the file of texts, if one was wanted, the number of prompts whose texts it has, and the other prompts."""
    processes = how.processes
    if output.output is None:
        yield None, 0, prompts
    elif processes is None:
        with kept(output.output, settings, prompts, samples) as (file, done):
            yield file, done, prompts
    elif processes.is_first:
        with kept(output.output, settings, prompts, samples) as (file, done):
            yield file, processes.broadcast(done), prompts
    else:
        done = processes.broadcast(0)
        yield None, done, itertools.islice(prompts, done, None)
