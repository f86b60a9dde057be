"""`anyorder generate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyorder.cli._options import (
    DiffusionOptions,
    ModelOptions,
    OutputOptions,
    ProcessOptions,
    PromptOptions,
    SamplingOptions,
    WritingOptions,
)
from anyorder.cli._order_options import chosen_order, with_drafts
from anyorder.cli._processes import is_first, number_of_processes
from anyorder.cli._prompts import GivenPrompt, PromptFile, has_gap, read_prompts, typed
from anyorder.errors import UserError


def command(
    model: str,
    prompt: str | None = None,
    *,
    given: PromptOptions,
    writing: WritingOptions,
    sampling: SamplingOptions,
    diffusion: DiffusionOptions,
    loading: ModelOptions,
    splitting: ProcessOptions,
    output: OutputOptions,
) -> None:
    """Continue a prompt, a file of prompts, or standard input.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        prompt: Text to continue; "-", or nothing at all, reads standard input to its end.
        given: what else is continued, and what is around it.
        writing: what is written, and how much at a time.
        sampling: how tokens are chosen.
        diffusion: how diffusion samples.
        loading: how the model is read.
        splitting: what several processes do together.
        output: how texts are printed, and what is kept of them.
    """
    interactive, image = given.interactive, given.image
    if interactive and (prompt is not None or given.prompts_file is not None or output.json):
        raise UserError("interactive is given with a prompt, prompts_file or json: leave out one of them.")
    if number_of_processes() > 1:
        _check_input(prompt, given.prompts_file, interactive=interactive)
    in_chat = given.chat or given.system is not None
    as_messages: Callable[[GivenPrompt], GivenPrompt] = _as_messages(given.system) if in_chat else lambda prompt: prompt
    prompts = [] if interactive else read_prompts(prompt, given.prompts_file, as_messages)
    file = prompts if isinstance(prompts, PromptFile) and (len(prompts) > 1 or output.output is not None) else None
    single = _check_output(output, writing, len(prompts), given, interactive=interactive)
    stream = output.stream or (sys.stdout.isatty() and not output.show and single)
    options = _options(writing, sampling, diffusion)

    import anyorder
    from anyorder.cli import _many
    from anyorder.cli._canvas import show_writing
    from anyorder.cli._console import PlainConsole
    from anyorder.cli._results import print_pieces, text_before, write_one, write_trace

    notes = PlainConsole(stderr=True)
    processes = splitting.begin(loading.device)
    loaded, tokenizer = loading.load(model, notes, processes)

    def write(one: GivenPrompt) -> Any:
        prompt = one.prompt
        seeing: dict[str, Any] = {"images": image} if image else {}
        if output.show and sys.stdout.isatty():
            return show_writing(loaded, tokenizer, prompt, options | seeing, delay=output.delay)
        if stream and not writing.gap_tokens and not has_gap(prompt):
            pieces = anyorder.stream(loaded, tokenizer, prompt, **options, **seeing)
            print_pieces(text_before(prompt), pieces)
            return pieces.output
        of_each: dict[str, Any] = {"processes": processes} | ({"images": [image]} if image else {})
        return write_one(loaded, tokenizer, one, notes, options | of_each, writing, output)

    if file is not None:
        if writing.gap_tokens and not file.has_gaps:
            raise UserError(
                f"gap_tokens is {options['gap_tokens']}, but no prompt has a gap: write [...] where tokens are missing."
            )
        how = _many.Writing(
            model=loaded, tokenizer=tokenizer, gap_tokens=options.pop("gap_tokens", None), images=image or None,
            processes=processes, options=_many.options_from(loaded, options, writing),
        )  # fmt: skip
        settings = _settings(model, given, writing, sampling, diffusion, loading)
        took = _many.write_many(how, file, notes, output, settings)
        if output.output is not None:
            print(f"{output.output}: {len(file) * (writing.num_samples or 1)} texts")
        notes.print(took, style="dim", soft_wrap=True)
        return
    if not interactive:
        out = write(*prompts)
        notes.print(out.trace.summary(), style="dim", soft_wrap=True)
        if output.trace is not None and is_first():
            write_trace(output.trace, [out], tokenizer)
        return
    for line in typed():
        try:
            notes.print(write(as_messages(line)).trace.summary(), style="dim", soft_wrap=True)
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            notes.print(f"error: {error}", soft_wrap=True)  # one prompt was wrong, and the next may be right


def _as_messages(system: str | None) -> Callable[[GivenPrompt], GivenPrompt]:
    """Return what makes messages of a prompt that is text."""
    before = [] if system is None else [{"role": "system", "content": system}]

    def convert(given: GivenPrompt) -> GivenPrompt:
        if not isinstance(given.prompt, str):
            raise UserError("chat is given with a prompt that is no text, but messages or token ids: leave out chat.")
        return dataclasses.replace(given, prompt=[*before, {"role": "user", "content": given.prompt}])

    return convert


def _check_input(prompt: str | None, prompts_file: Path | None, *, interactive: bool) -> None:
    """Refuse to read what is typed, or standard input, which processes cannot share.

    Raises:
        UserError: see above.
    """
    if interactive:
        raise UserError("interactive is given, but several processes were started: start one without torchrun.")
    if str(prompts_file or prompt or "-") == "-":
        raise UserError(
            "the prompt comes from standard input, which several processes cannot share: give it as a word, or "
            "prompts_file."
        )


def _check_output(
    output: OutputOptions, writing: WritingOptions, prompts: int, given: PromptOptions, *, interactive: bool
) -> bool:
    """Refuse what cannot be printed or kept; return whether a single text is written.

    Raises:
        UserError: see above.
    """
    if output.output is not None and given.prompts_file is None:
        raise UserError("output is given without prompts_file, whose texts alone it keeps: add that, or leave it out.")
    if output.output is not None and output.trace is not None:
        raise UserError("output is given with trace, which a later run does not resume: leave out one of them.")
    several = {
        f"{prompts} prompts": prompts > 1,
        "output": output.output is not None,
        f"num_samples {writing.num_samples}": writing.num_samples is not None,
        f"num_beams {writing.num_beams}": writing.num_beams != 1,
        "json": output.json,
    }
    if output.stream and output.show:
        raise UserError("stream is given with show, and both are for the terminal: leave out one of them.")
    for name in (name for name, given in several.items() if given):
        if output.stream:
            raise UserError(f"stream is given with {name}, but only a single text is streamed: leave out one of them.")
        if output.show:
            raise UserError(f"show is given with {name}, but only a single text is shown: leave out one of them.")
    if not 0 <= output.delay < float("inf"):
        raise UserError(f"delay is {output.delay}: give seconds, such as 0.2.")
    if output.delay and not output.show:
        raise UserError(f"delay is {output.delay} without --show, which alone waits: add --show, or leave out --delay.")
    if output.trace is not None:
        if interactive:
            raise UserError("trace is given with interactive, but one file holds one run: leave out one of them.")
        from anyorder.utils.files import check_place  # here, because it takes PyTorch, and the help does not

        check_place(output.trace, folder=False)
    return not any(several.values())


def _settings(
    model: str, given: PromptOptions, writing: WritingOptions, sampling: SamplingOptions, diffusion: DiffusionOptions,
    loading: ModelOptions,
) -> dict[str, Any]:  # fmt: skip
    """Return all options that decide what is written."""
    read = {name: getattr(loading, name) for name in ("tokenizer", "dtype", "revision")}
    around = {name: getattr(given, name) for name in ("chat", "system", "image")}
    written = {
        name: value for name, value in dataclasses.asdict(writing).items() if name not in ("batch_size", "compile")
    }
    return {
        "model": model,
        **read,
        **around,
        **written,
        **dataclasses.asdict(sampling),
        **dataclasses.asdict(diffusion),
    }


def _options(writing: WritingOptions, sampling: SamplingOptions, diffusion: DiffusionOptions) -> dict[str, Any]:
    """Return the keywords that `anyorder.generate` and `anyorder.stream` share.

    Raises:
        UserError: options that contradict each other.
    """
    order = with_drafts(chosen_order(writing.order, diffusion, sampling), writing.draft)
    options: dict[str, Any] = {
        "order": order, "max_new_tokens": writing.max_new_tokens, "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty, "stop": writing.stop or None, "seed": sampling.seed,
        "compile": {"auto": "auto", "always": True, "never": False}[writing.compile],
    }  # fmt: skip
    if order is None or isinstance(order, str):  # a sampler has these itself
        options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    if gaps := writing.gap_tokens:
        options["gap_tokens"] = gaps[0] if len(gaps) == 1 else gaps
    return options
