"""What `anyorder generate` writes: texts as they are finished, as text or JSON lines, and the file of their trace."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from anyorder.api.generate import generate
from anyorder.api.output import Output
from anyorder.cli._console import PlainConsole
from anyorder.cli._options import OutputOptions, WritingOptions
from anyorder.cli._prompts import GivenPrompt, has_gap
from anyorder.decoding.trace import Step, Trace
from anyorder.inspection.replay import Recording
from anyorder.utils.files import whole_file
from anyorder.utils.json_text import json_text
from anyorder.utils.progress import TextProgress

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def write_one(
    model: Llama,
    tokenizer: Any,
    prompt: GivenPrompt,
    notes: PlainConsole,
    options: Mapping[str, Any],
    writing: WritingOptions,
    output: OutputOptions,
) -> Output:
    """Write the texts of a prompt to standard output batch by batch, with their number on standard error.

    After Ctrl-C what was written stays, and the trace file has what is finished.

    Args:
        prompt: what they continue.
        notes: standard error.
        options: further ones of `anyorder.generate`.
        writing: how many texts of each prompt, and how many at a time.
        output: how they are printed, and the file of their trace.

    Raises:
        UserError: see `anyorder.generate`.
    """
    results = Results(writing.num_samples, json=output.json, keeps=output.trace is not None)
    total = writing.num_samples or 1
    bar = TextProgress(total, notes) if total > 1 else None
    counts_steps = bar is not None and writing.num_beams == 1 and not isinstance(options.get("gap_tokens"), list)

    def on_step(step: Step) -> None:
        if bar is not None:
            bar.advance(len(step.stopped), len(step.written))

    def on_batch(out: Output) -> None:
        if bar is not None and not counts_steps:
            bar.advance(len(out.sequences), len(out.trace.events))
        status.stop()
        with nullcontext() if bar is None else bar.aside():
            results.write([prompt], out)

    status = notes.status("writing")
    try:
        with status if bar is None else bar:
            return generate(
                model, tokenizer, [prompt.prompt], num_samples=writing.num_samples,
                num_beams=writing.num_beams, batch_size=writing.batch_size,
                watch=on_step if counts_steps else None, progress=on_batch, **options,
            )  # fmt: skip
    except KeyboardInterrupt:
        if results.count:
            notes.print(f"\n{results.count} of {total} texts are finished", soft_wrap=True)
            if output.trace is not None:
                write_trace(output.trace, results.kept, tokenizer)
        raise


class Results:
    """Writes texts in the order of their prompts, as text or as JSON lines.

    Args:
        num_samples: texts of each prompt, if a number of them was given.
        json: whether to write a JSON object a line.
        keeps: whether to keep the outputs.
        file: where to; standard output unless given.
        count: number of texts that are there already.

    Attributes:
        kept: the outputs so far, if they are kept.
        count: number of texts that are there.
    """

    def __init__(
        self, num_samples: int | None, *, json: bool, keeps: bool = False, file: TextIO | None = None, count: int = 0
    ) -> None:  # fmt: skip
        self.kept: list[Output] = []
        self.count = count
        self._num_samples, self._json, self._keeps, self._file = num_samples, json, keeps, file

    def write(self, prompts: Sequence[GivenPrompt], out: Output) -> None:
        """Write the next texts, an entry of the output each, and all of them at once.

        Args:
            prompts: which they continue, from the first whose texts are not all there.
            out: the texts.
        """
        records = list(self._records(prompts, out))
        if self._json:
            print("".join(json_text(record) + "\n" for record in records), end="", file=self._file)
        else:
            for number, record in enumerate(records, start=self.count):
                self._print(record, first=number == 0)
        self.count += len(records)
        if self._keeps:
            self.kept.append(out)
        (self._file or sys.stdout).flush()

    def _print(self, record: Mapping[str, Any], *, first: bool) -> None:
        if record["text"] is None:
            print_writing("", " ".join(map(str, record["token_ids"])), first=first)
        elif has_gap(record["prompt"]):
            print_writing("", record["full_text"], first=first)
        else:
            print_writing(text_before(record["prompt"]), record["text"], first=first)

    def _records(self, prompts: Sequence[GivenPrompt], out: Output) -> Iterator[dict[str, Any]]:
        """Yield the record of each text."""
        samples = self._num_samples or 1
        for entry, (ids, stopped) in enumerate(zip(out.token_ids, out.stopped, strict=True)):
            row = self.count + entry
            given = prompts[row // samples - self.count // samples]
            yield {
                **given.others,
                "prompt": given.prompt,
                **({"sample": row % samples} if self._num_samples else {}),
                "text": None if out.text is None else out.text[entry],
                "full_text": None if out.full_text is None else out.full_text[entry],
                "token_ids": ids,
                "stopped": stopped,
                "trace": _row_summary(out.trace, row),
            }


def _row_summary(trace: Trace, row: int) -> dict[str, float]:
    """Return the tokens, passes and log-probability of one text."""
    events = [event for event in trace.events if event.sample_id == row]
    return {
        "tokens": len(events),
        "passes": 1 + max(event.step for event in events),
        "log_prob": sum(event.log_prob for event in events),
    }


def text_before(prompt: Any) -> str:
    """Return what is printed before a continuation: nothing where the prompt is messages or token ids."""
    return prompt if isinstance(prompt, str) else ""


def print_writing(prompt: str, text: str, *, first: bool = True) -> None:
    """Print a prompt and its continuation: the prompt is dimmed on a terminal; elsewhere the text is exact.

    Args:
        prompt: as given.
        text: what was written.
        first: otherwise an empty line goes before.
    """
    if not first:
        print()
    print_pieces(prompt, [text])


def print_pieces(prompt: str, pieces: Iterable[str]) -> None:
    """Print the same, each piece of the continuation as soon as it comes."""
    if sys.stdout.isatty():
        PlainConsole().print(prompt, style="dim", end="", soft_wrap=True)
    else:
        print(prompt, end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def write_trace(file: Path, outs: Sequence[Output], tokenizer: Any, passes: int | None = None) -> None:
    """Write the trace of these texts, one batch after the other.

    Args:
        file: new file.
        outs: the texts.
        tokenizer: spells them.
        passes: forward passes that all took together; the sum of all unless given.
    """
    trace = Trace.join([out.trace for out in outs])
    if passes is not None:
        trace = dataclasses.replace(trace, passes=passes)
    sequences = [sequence for out in outs for sequence in out.sequences]
    with whole_file(file) as partial:
        partial.write_text(Recording.of(trace, sequences, tokenizer).to_json(), encoding="utf-8")
