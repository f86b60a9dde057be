"""`anyorder generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from anyorder.cli._order_options import SamplingMethod, chosen_order, with_drafts
from anyorder.cli._prompts import Asked, has_gap, read_prompts, typed
from anyorder.errors import UserError


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
    image: list[str] = [],  # noqa: B006 (never changed)
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
    delay: float = 0.0,
    json: bool = False,
    trace: Path | None = None,
) -> None:
    """Continue a prompt, a file of prompts, or standard input.

    Args:
        model: Hugging Face or Meta folder, llama2.c file, or hub id (org/name).
        prompt: Text to continue; "-", or nothing at all, reads standard input to its end.
        prompts_file: File with one prompt in each line; in a .jsonl file, a JSON string or an object with prompt, text,
            messages or prompt_token_ids in each. "-" is standard input.
        interactive: Continue one prompt after another, each a line that is typed; Ctrl-D ends.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        order: Mode, such as left-to-right, any-order, random, groups:4, confidence, diffusion or blocks:32;
            that of the model unless given, or one that fills gaps.
        max_new_tokens: Tokens to write per text at most.
        gap_tokens: Tokens of each gap, [...] in the prompt; of several lengths, such as 2,4,8, the most probable one
            is taken.
        draft: Groups that a pass asks about in any order, the later ones as drafts: fewer passes, the same
            distribution.
        temperature: 0 always takes the most probable token; above 0, tokens are drawn.
        top_k: Draw only from this many most probable tokens.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        min_p: Draw only from tokens at least this many times as probable as the most probable one.
        repetition_penalty: Above 1, tokens that the prompt or the text has already become rarer.
        stop: Text that ends the writing; may be repeated.
        image: Image file that the prompt is about, for a model with vision; once for each <|image|> of the prompt, or
            as often as wanted for one without. Each of several prompts has all of them.
        seed: With the number of the prompt, decides what is drawn.
        num_samples: Texts to draw per prompt, one unless given.
        num_beams: Above 1, beam search with so many beams.
        batch_size: Texts to write at a time; changes speed and memory, not what is written.
        compile: Whether the one-token step is compiled, which takes time at first use; auto does so where it pays.
        preset: Diffusion as published: llada, llada-semi-ar, dream-maskgit, dream-margin, dream-entropy, fast-dllm,
            sdar, llada2 or llada2.1.
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
        delay: Seconds to wait after each step that --show draws, such as 0.2.
        json: Print one JSON object a line instead of text.
        trace: New file for what was written where and when, which `anyorder inspect replay` shows.
    """
    if interactive and (prompt is not None or prompts_file is not None or json):
        raise UserError("interactive is given with a prompt, prompts_file or json: leave out one of them.")
    prompts = [] if interactive else read_prompts(prompt, prompts_file)
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
    if not 0 <= delay < float("inf"):
        raise UserError(f"delay is {delay}: give seconds, such as 0.2.")
    if delay and not show:
        raise UserError(f"delay is {delay} without --show, which alone waits: add --show, or leave out --delay.")
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
    written_in = with_drafts(written_in, draft)
    options: dict[str, Any] = {
        "order": written_in, "max_new_tokens": max_new_tokens, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "stop": stop or None, "seed": seed, "compile": {"auto": "auto", "always": True, "never": False}[compile],
    }  # fmt: skip
    if written_in is None or isinstance(written_in, str):  # a sampler has these itself
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if image:
        options["images"] = image
    if gap_tokens:
        options["gap_tokens"] = gap_tokens[0] if len(gap_tokens) == 1 else gap_tokens

    import anyorder
    from anyorder.cli._canvas import show_writing
    from anyorder.cli._console import PlainConsole
    from anyorder.cli._results import print_pieces, text_before, write_all, write_trace

    notes = PlainConsole(stderr=True)
    with notes.status(f"reading {model}"):
        network, words = anyorder.load(
            model, dtype=dtype, device=device, attention=attention, tokenizer=tokenizer, revision=revision
        )

    def write(asked: list[Asked]) -> Any:
        given = asked[0].prompt
        if show and sys.stdout.isatty():
            return show_writing(network, words, given, options, delay=delay)
        if stream and not gap_tokens and not has_gap(given):
            pieces = anyorder.stream(network, words, given, **options)
            print_pieces(text_before(given), pieces)
            return pieces.output
        of_each = {"images": [image] * len(asked)} if image else {}
        return write_all(
            network, words, asked, notes, options | of_each, num_samples=num_samples, num_beams=num_beams,
            batch_size=batch_size, json=json, trace=trace,
        )  # fmt: skip

    if not interactive:
        out = write(prompts)
        notes.print(out.trace.summary(), style="dim", soft_wrap=True)
        if trace is not None:
            write_trace(trace, [out], words)
        return
    for asked in typed():
        try:
            notes.print(write([asked]).trace.summary(), style="dim", soft_wrap=True)
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            notes.print(f"error: {error}", soft_wrap=True)  # one prompt was wrong, and the next may be right
