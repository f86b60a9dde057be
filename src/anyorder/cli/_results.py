"""What `anyorder generate` writes: texts as they are finished, as text or JSON lines, and the file of their trace."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def write_all(
    model: Llama,
    tokenizer: Any,
    prompts: Sequence[GivenPrompt],
    notes: PlainConsole,
    options: Mapping[str, Any],
    writing: WritingOptions,
    output: OutputOptions,
) -> Output:
    """Write texts to standard output batch by batch, with their number on standard error.

    After Ctrl-C what was written stays, and the trace file has what is finished.

    Args:
        prompts: in order.
        notes: standard error.
        options: further ones of `anyorder.generate`.
        writing: how many texts of each prompt, and how many at a time.
        output: how they are printed, and the file of their trace.

    Raises:
        UserError: see `anyorder.generate`.
    """
    results = Results(prompts, writing.num_samples, json=output.json)
    total = len(prompts) * (writing.num_samples or 1)
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
            results.print(out)

    status = notes.status("writing")
    try:
        with status if bar is None else bar:
            return generate(
                model, tokenizer, [one.prompt for one in prompts], num_samples=writing.num_samples,
                num_beams=writing.num_beams, batch_size=writing.batch_size,
                watch=on_step if counts_steps else None, progress=on_batch, **options,
            )  # fmt: skip
    except KeyboardInterrupt:
        if results.batches:
            notes.print(f"\n{results.count} of {total} texts are finished", soft_wrap=True)
            if output.trace is not None:
                write_trace(output.trace, results.batches, tokenizer)
        raise


class Results:
    """Prints texts in the order of their prompts.

    Args:
        prompts: in order.
        num_samples: texts of each, if a number of them was given.
        json: whether to print a JSON object a line.

    Attributes:
        batches: what was printed.
        count: number of texts in it.
    """

    def __init__(self, prompts: Sequence[GivenPrompt], num_samples: int | None, *, json: bool) -> None:
        self.batches: list[Output] = []
        self.count = 0
        self._given, self._num_samples, self._json = prompts, num_samples, json

    def print(self, out: Output) -> None:
        """Print a batch, one entry per text, and all of it at once."""
        for record in self._records(out):
            if self._json:
                print(json_text(record))
            elif record["text"] is None:
                print_writing("", " ".join(map(str, record["token_ids"])), first=self.count == 0)
            elif has_gap(record["prompt"]):
                print_writing("", record["full_text"], first=self.count == 0)
            else:
                print_writing(text_before(record["prompt"]), record["text"], first=self.count == 0)
            self.count += 1
        self.batches.append(out)
        sys.stdout.flush()

    def _records(self, out: Output) -> Iterator[dict[str, Any]]:
        """Yield the record of each text."""
        first = self.count
        for entry, (ids, stopped) in enumerate(zip(out.token_ids, out.stopped, strict=True)):
            row = first + entry
            number, sample = divmod(row, self._num_samples or 1)
            yield {
                **self._given[number].others,
                "prompt": self._given[number].prompt,
                **({"sample": sample} if self._num_samples else {}),
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


def write_trace(file: Path, outs: Sequence[Output], tokenizer: Any) -> None:
    """Write the trace of these texts, one batch after the other."""
    trace = Trace.join([out.trace for out in outs])
    sequences = [sequence for out in outs for sequence in out.sequences]
    with whole_file(file) as partial:
        partial.write_text(Recording.of(trace, sequences, tokenizer).to_json(), encoding="utf-8")
