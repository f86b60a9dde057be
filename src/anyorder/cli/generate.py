"""`anyorder generate`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anyorder.cli._order_options import SamplingMethod, chosen_order, with_drafts
from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.decoding.trace import Trace


def command(
    model: str,
    prompt: str | None = None,
    *,
    prompts_file: Path | None = None,
    interactive: bool = False,
    tokenizer: str | None = None,
    order: str | None = None,
    max_new_tokens: int = 64,
    gap_tokens: list[int] = [],  # noqa: B006 (never changed)
    draft: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: list[str] = [],  # noqa: B006 (never changed)
    seed: int = 0,
    num_samples: int | None = None,
    num_beams: int = 1,
    batch_size: int = 16,
    compile: Literal["auto", "always", "never"] = "auto",
    preset: str | None = None,
    sampling_method: SamplingMethod | None = None,
    remasking_strategy: str | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    cfg_scale: float | None = None,
    cache: Literal["none", "prefix", "dual"] | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
    stream: bool = False,
    show: bool = False,
    json: bool = False,
    trace: Path | None = None,
) -> None:
    """Continue a prompt, a file of prompts, or standard input.

    Args:
        model: Hugging Face or Meta folder, llama2.c file, or hub id (org/name).
        prompt: Text to continue; "-", or nothing at all, reads standard input to its end.
        prompts_file: File with one prompt in each line, "-" for standard input.
        interactive: Continue one prompt after another, each a line that is typed; Ctrl-D ends.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        order: Way of writing, such as left-to-right, any-order, random, groups:4, confidence, diffusion or blocks:32;
            that of the model unless given.
        max_new_tokens: Tokens to write per text at most.
        gap_tokens: Tokens of each gap, [...] in the prompt, where the order is not left-to-right; of several lengths,
            such as 2,4,8, the most probable one is taken.
        draft: Groups that a pass asks about in any order, the later ones as drafts: fewer passes, the same
            distribution.
        temperature: 0 always takes the most probable token; above 0, tokens are drawn.
        top_k: Draw only from this many most probable tokens.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        min_p: Draw only from tokens at least this many times as probable as the most probable one.
        repetition_penalty: Above 1, tokens that the prompt or the text has already become rarer.
        stop: Text that ends the writing; may be repeated.
        seed: With the number of the prompt, decides what is drawn.
        num_samples: Texts to draw per prompt, one unless given.
        num_beams: Above 1, beam search with so many beams.
        batch_size: Texts to write at a time; changes speed and memory, not what is written.
        compile: Whether the one-token step is compiled, which takes time at first use; auto does so where it pays.
        preset: Diffusion as published: llada, llada-semi-ar, dream-maskgit, dream-margin, dream-entropy or fast-dllm.
        sampling_method: Diffusion in LLaDA's words: all at once, block by block on a canvas that grows until the end
            token, or block by block on the whole canvas.
        remasking_strategy: What diffusion writes first: low_confidence, random, topk_margin or entropy.
        steps: Steps of diffusion for the whole text, one a token unless given.
        block_length: Tokens of a block, where diffusion writes block by block.
        cfg_scale: Classifier-free guidance of diffusion, none unless given.
        cache: Keys that diffusion keeps within a block; prefix and dual are fast and approximate.
        threshold: Diffusion writes all tokens that are surer than this, instead of so many a step.
        factor: Diffusion writes the n-th surest token if it is as sure as 1 - factor / (n + 1).
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8 (those of the
            projections rounded to 8 bits).
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        attention: auto, eager, sdpa, flex or flash.
        revision: Branch, tag or commit of a model on the hub.
        stream: Print the text while it is written, as a terminal always shows a single text.
        show: Draw the text in the terminal while it fills, in whatever order; elsewhere it is printed at its end.
        json: Print one JSON object a line instead of text.
        trace: New file for what was written where and when, which `anyorder inspect replay` shows.
    """
    if interactive and (prompt is not None or prompts_file is not None or json):
        raise UserError("interactive is given with a prompt, prompts_file or json: leave out one of them.")
    prompts = [] if interactive else _prompts(prompt, prompts_file)
    instead = {
        f"{len(prompts)} prompts": len(prompts) > 1,
        f"num_samples {num_samples}": num_samples is not None,
        f"num_beams {num_beams}": num_beams != 1,
        "json": json,
    }
    if stream and show:
        raise UserError("stream is given with show, and both are for the terminal: leave out one of them.")
    for name, given in instead.items():
        if stream and given:
            raise UserError(f"stream is given with {name}, but only a single text is streamed: leave out one of them.")
        if show and given:
            raise UserError(f"show is given with {name}, but only a single text is shown: leave out one of them.")
    if trace is not None:
        if interactive:
            raise UserError("trace is given with interactive, but one file holds one run: leave out one of them.")
        from anyorder.utils.files import check_place  # here, because it takes PyTorch, and the help does not

        check_place(trace, folder=False)
    stream = stream or (sys.stdout.isatty() and not show and not any(instead.values()))
    written_in = chosen_order(
        order, temperature=temperature, top_k=top_k, top_p=top_p, preset=preset, sampling_method=sampling_method,
        remasking_strategy=remasking_strategy, steps=steps, block_length=block_length, cfg_scale=cfg_scale, cache=cache,
        threshold=threshold, factor=factor,
    )  # fmt: skip
    written_in, lengths = with_drafts(written_in, draft), gap_tokens[0] if len(gap_tokens) == 1 else gap_tokens
    options: dict[str, Any] = {
        "order": written_in, "max_new_tokens": max_new_tokens, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "stop": stop or None, "seed": seed, "compile": {"auto": "auto", "always": True, "never": False}[compile],
    }  # fmt: skip
    if written_in is None or isinstance(written_in, str):  # a sampler has these itself
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    import anyorder
    from anyorder.api.dispatch import resolve
    from anyorder.api.text import GAP, filled
    from anyorder.cli._canvas import show_writing
    from anyorder.cli._console import PlainConsole
    from anyorder.ways import LEFT_TO_RIGHT

    notes = PlainConsole(stderr=True)
    with notes.status(f"reading {model}"):
        network, words = anyorder.load(
            model, dtype=dtype, device=device, attention=attention, tokenizer=tokenizer, revision=revision
        )
    way, _ = resolve(written_in, network.config)
    has_gaps = way.name != LEFT_TO_RIGHT.name
    if gap_tokens:
        options["gap_tokens"] = lengths
    for batch in _typed() if interactive else [prompts]:
        if stream and not (has_gaps and GAP in batch[0]):
            pieces = anyorder.stream(network, words, batch[0], **options)
            print_pieces(batch[0], pieces)
            out = pieces.output
        elif show and sys.stdout.isatty():
            out = show_writing(network, words, batch[0], options)
        else:
            with notes.status("writing"):
                out = anyorder.generate(
                    network,
                    words,
                    batch,
                    num_samples=num_samples,
                    num_beams=num_beams,
                    batch_size=batch_size,
                    **options,
                )
            for row, record in enumerate(_records(batch, out, num_samples)):
                if has_gaps and GAP in record["prompt"]:
                    record["filled"] = filled(record["prompt"], record["text"])
                if json:
                    print(jsonlib.dumps(record, ensure_ascii=False))
                elif "filled" in record:
                    print_writing("", record["filled"], first=row == 0)
                else:
                    print_writing(record["prompt"], record["text"], first=row == 0)
        sys.stdout.flush()
        notes.print(out.trace.summary(), style="dim", soft_wrap=True)
        if trace is not None:
            _write_trace(trace, out, words)


def print_writing(prompt: str, text: str, *, first: bool = True) -> None:
    """A prompt and its continuation: the prompt is dimmed on a terminal; elsewhere the text is exact.

    Args:
        prompt: as given.
        text: what was written.
        first: otherwise an empty line goes before.
    """
    if not first:
        print()
    print_pieces(prompt, [text])


def print_pieces(prompt: str, pieces: Iterable[str]) -> None:
    """The same, with each piece of the continuation as soon as it comes."""
    if sys.stdout.isatty():
        from anyorder.cli._console import PlainConsole

        PlainConsole().print(prompt, style="dim", end="", soft_wrap=True)
    else:
        print(prompt, end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _write_trace(file: Path, out: Any, tokenizer: Any) -> None:
    from anyorder.inspection.replay import Recording
    from anyorder.utils.files import whole_file

    with whole_file(file) as partial:
        partial.write_text(Recording.of(out.trace, out.sequences, tokenizer).to_json(), encoding="utf-8")


def _records(prompts: list[str], out: Any, num_samples: int | None) -> Iterator[dict[str, Any]]:
    """What is told of each text of an `Output`."""
    texts, token_ids = (
        [of_sample for of_prompt in column for of_sample in (of_prompt if num_samples else [of_prompt])]
        for column in (out.text or [], out.token_ids)
    )
    for row, (text, ids) in enumerate(zip(texts, token_ids, strict=True)):
        number, sample = divmod(row, num_samples or 1)
        yield {
            "prompt": prompts[number],
            **({"sample": sample} if num_samples else {}),
            "text": text,
            "token_ids": ids,
            "stopped": out.stopped[row],
            "trace": _row_summary(out.trace, row),
        }


def _row_summary(trace: Trace, row: int) -> dict[str, float]:
    """What one text's writing took: tokens, passes, and the log-probability of all that was written."""
    events = [event for event in trace.events if event.row == row]
    return {
        "tokens": len(events),
        "passes": 1 + max(event.step for event in events),
        "log_prob": sum(event.log_prob for event in events),
    }


def _prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    """All prompts of the command line, in order."""
    if prompts_file is None:
        return [_standard_input().removesuffix("\n") if prompt in (None, "-") else str(prompt)]
    if prompt is not None:
        raise UserError(
            f"a prompt is given beside prompts_file, which is {str(prompts_file)!r}: leave out one of them."
        )
    if str(prompts_file) == "-":
        text = _standard_input()
    else:
        text = _decode(prompts_file.read_bytes(), str(prompts_file))
    # Not splitlines, which also cuts at characters that a prompt may have.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    for number, line in enumerate(lines, start=1):
        if not line:
            raise UserError(f"line {number} of {str(prompts_file)!r} is empty: write a prompt in it, or delete it.")
    if not lines:
        raise UserError(f"prompts_file is {str(prompts_file)!r}, which is empty: write one prompt in each line.")
    return lines


def _typed() -> Iterator[list[str]]:
    """Prompts as they are typed, a line each, until Ctrl-D."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield [line.removesuffix("\n")]


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("type the prompt, then Ctrl-D:", file=sys.stderr)
    return _decode(sys.stdin.buffer.read(), "standard input")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 at byte {error.start}: convert it to UTF-8.") from None
