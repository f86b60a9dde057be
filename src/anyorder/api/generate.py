"""Text in, text out: where tokenizer and decoder meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from anyorder import checkpoints
from anyorder.api.batches import Batches
from anyorder.api.gap_lengths import LikeliestLengths
from anyorder.api.images import as_tokens, seen
from anyorder.api.output import Finished, Output, Stream, pieces
from anyorder.api.prompts import Prompt, prompts_for
from anyorder.api.text import GAP, Gaps, detokenizer_of, stop_strings
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Recorder, Step
from anyorder.errors import UserError
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.modes import Options, Order, decoder_of
from anyorder.parallel import Processes, is_split
from anyorder.utils.annotations import checked
from anyorder.utils.progress import TextProgress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@checked()
def load(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attention: str = "auto",
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    processes: Processes | None = None,
) -> tuple[Llama, PreTrainedTokenizerBase | None]:
    """Read a network and its tokenizer, which is None where the checkpoint has none and none is named.

    Args:
        path: a checkpoint: a Hugging Face or Meta folder, a llama2.c or GGUF file, the id of a model on the hub, or
            "stories", the network that the package ships, unless a file or folder here has this name.
        dtype: of the weights, such as "bfloat16"; "auto" keeps that of the checkpoint, and "int8" rounds those of the
            projections to 8 bits, for writing alone.
        device: such as "cpu" or "cuda:1"; "auto" takes a GPU where there is one.
        attention: "auto", "eager", "sdpa", "flex" or "flash", or transformers' name for it.
        tokenizer: where the tokenizer is, if not with the checkpoint: a folder, a llama2.c tokenizer file, a
            SentencePiece or tiktoken model, or the id of a model on the hub.
        revision: on the hub, a branch, a tag or a commit.
        token: for private and gated models on the hub; that of HF_TOKEN or of `hf auth login` unless given.
        processes: over which the network is split, see `anyorder.parallel.begin`; each reads its part of the weights.

    Raises:
        UserError: the checkpoint is missing, damaged or of a kind that is not known, the device or attention cannot
            be had here, or the network cannot be split over the processes.
    """
    if processes is not None and dtype == "int8":
        raise UserError("dtype is 'int8', but weights of several processes are not rounded: leave out dtype.")
    device = device if processes is None else processes.device
    model, loaded = checkpoints.load(
        path, tokenizer=tokenizer, dtype="auto" if dtype == "int8" else dtype, device=device, backend=attention,
        revision=revision, token=token, split=None if processes is None else processes.split,
    )  # fmt: skip
    if processes is not None:
        from anyorder.parallel import parallelize  # which takes a second to import

        parallelize(model, processes.tensor)
    return (to_int8(model) if dtype == "int8" else model), loaded


@checked()
def save(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, path: str | Path, form: str | None = None
) -> None:  # fmt: skip
    """Write a Hugging Face folder that `load` and transformers read, whole or not at all.

    Args:
        model: the network.
        tokenizer: is written beside it; None for no tokenizer.
        path: a new or empty folder.
        form: such as "llada" or "dream": as those masked diffusion models are published, for the code that reads them.

    Raises:
        UserError: the folder is not empty or cannot be written, or the form cannot express the network.
    """
    checkpoints.save_model(model, path, tokenizer=tokenizer, form=form)


@checked()
def convert(source: str | Path, target: str | Path, **options: Any) -> None:
    """Read a checkpoint of one form and write another: `options` are those of `anyorder.checkpoints.convert`.

    Raises:
        UserError: the source cannot be read or the target cannot be written.
    """
    checkpoints.convert(source, target, **options)


@checked("prompt", "order", "stop", "images")
def generate(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: Prompt,
    order: Order | None = None,
    max_new_tokens: int = 64,
    gap_tokens: int | Sequence[int] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    num_beams: int = 1,
    batch_size: int | None = None,
    use_cache: bool = True,
    compile: bool | Literal["auto"] = "auto",
    watch: Callable[[Step], None] | None = None,
    progress: bool | Callable[[Output], None] = False,
    images: Sequence[Any] | None = None,
    processes: Processes | None = None,
) -> Output:
    """Continue a prompt, or fill its gaps; likewise each of a list of prompts.

    Args:
        model: the network.
        tokenizer: of the network; may be None where the prompts are token ids.
        prompt: a string, a list of strings, token ids (a list or a tensor `[tokens]`), or a list or tensor
            `[prompts, tokens]` of such; messages, each with role and content, or a list of dialogues; what
            `apply_chat_template` returns, whose padding is dropped. A list may be ragged. Nothing is added to token
            ids, and to text nothing that it carries already. `[...]` in a text is a gap to be filled, and -1 among
            token ids a token to be written.
        order: the mode: "left-to-right", "any-order", "random", "groups:4" (and other names of
            `anyorder.orders.names`), "diffusion", "blocks:32"; or an object: a `GroupPlan`, an order
            of `anyorder.orders`, `MostConfident`, `Speculative`, `SelfSpeculative`, a `DiffusionSampler`. Unless given,
            the network's default; for a prompt with a gap, which is not filled from left to right, "any-order" or else
            "diffusion".
        max_new_tokens: tokens to write per text at most.
        gap_tokens: tokens to write in each gap of a text; `max_new_tokens` unless given. Of several lengths the one
            that makes the text most probable: see `anyorder.api.gap_lengths`.
        temperature: 0 takes the most probable token each time; above 0, tokens are drawn.
        top_k, top_p, min_p: draw only among the most probable tokens: see `Sampling`.
        repetition_penalty: above 1, tokens that the prompt or the text has already become rarer: see `Sampling`.
        stop: strings that end the text; they are no part of `text`. A gap is filled to its end, and takes none.
        seed: decides the draws, with the number of the prompt in the list: batches play no part.
        num_samples: texts to draw per prompt; each text of the output is then a list of this many. They are drawn as if
            the list had the prompt so many times.
        num_beams: above 1, beam search with so many beams, as in transformers: of the texts that it finds, the one
            with the highest mean log-probability per token.
        batch_size: texts to write at a time; all unless given.
        use_cache: False recomputes the whole sequence for every token (slow reference path).
        compile: whether passes are compiled, which takes time at first use; "auto" takes what is compiled already, and
            compiles where that pays.
        watch: callback, called with each `Step`; its time is not counted.
        progress: True prints on standard error how many texts are finished; a callback is called with the `Output` of
            each batch, one entry per text.
        images: files, their bytes, or images of Pillow, for a network with vision: one for each `<|image|>` of the
            prompt, or all at its beginning; for a list of prompts, a list for each. Messages can have them as parts.
        processes: which share out the batches; each returns all texts, and calls `progress` with them at the end.

    Raises:
        UserError: a prompt or an option that cannot be, or options that exclude each other, in a sentence that names
            the remedy.
    """
    if watch is not None and num_beams != 1:
        raise UserError(
            f"watch is given beside num_beams {num_beams!r}, but only the end tells what beams write: leave out one."
        )
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    options = Options(
        order=order, sampling=sampling, max_new_tokens=max_new_tokens, stop=stop, num_samples=num_samples,
        num_beams=num_beams, batch_size=batch_size, use_cache=use_cache, compile=compiles(model, compile),
    )  # fmt: skip
    batches: Batches | LikeliestLengths
    prompt, with_rows = seen(model, tokenizer, prompt, images)
    if isinstance(gap_tokens, Sequence):
        batches = LikeliestLengths(model, tokenizer, prompt, options, gap_tokens, with_rows)
    else:
        batches = Batches(model, tokenizer, prompt, options, gap_tokens, with_rows)
    bar = TextProgress(len(batches.rows)) if progress is True else None
    counts_steps = bar is not None and num_beams == 1 and isinstance(batches, Batches)

    def on_step(step: Step) -> None:
        if watch is not None:
            watch(step)
        if bar is not None and counts_steps:
            bar.advance(len(step.stopped), len(step.written))

    finished = []
    with bar or nullcontext():
        for batch in batches.write(on_step if counts_steps or watch is not None else None, processes):
            finished.append(batch)
            if bar is not None and not counts_steps:
                bar.advance(len(batch.generation.written), len(batch.generation.trace.events))
            if callable(progress) and processes is None:
                progress(batch.output(single=False))
    if processes is not None:
        finished = processes.in_order(processes.shares(finished))
        if callable(progress):
            for batch in finished:
                progress(batch.output(single=False))
    return Finished.join(finished).output(single=batches.single, num_samples=num_samples)


@checked("prompt", "order", "stop", "images")
def stream(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: Prompt,
    order: Order | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    num_beams: int = 1,
    use_cache: bool = True,
    compile: bool | Literal["auto"] = "auto",
    images: Sequence[Any] | None = None,
) -> Stream:
    """Continue a single prompt as `generate` does, and yield the text piece by piece while it is written.

    The arguments are those of `generate`. A tokenizer is needed also where the prompt is token ids. Several samples
    and beam search are for `generate` alone.

    Raises:
        UserError: what `generate` refuses, or what cannot be streamed; at once, not with the first piece.
    """
    if num_samples is not None:
        raise UserError(
            f"num_samples is {num_samples!r} for a stream, which is one text: leave it out, or use generate."
        )
    if num_beams != 1:
        late = f"num_beams is {num_beams!r} for a stream, but only the end of a beam search tells which text is best"
        raise UserError(f"{late}: leave it out, or use generate.")
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    prompt, with_rows = seen(model, tokenizer, prompt, images)
    model = model if with_rows is None else with_rows.model
    read = prompts_for(order, prompt, tokenizer, model.config, max_new_tokens, images=with_rows)
    if tokenizer is None:
        raise UserError("tokenizer is None: give the tokenizer, which makes the text to be streamed, or use generate.")
    if not read.single:
        raise UserError(f"the prompt of a stream is a list of {len(read.rows)}: give one of them, or use generate.")
    [(mode, order)] = read.modes
    options = Options(
        order=order, sampling=sampling, max_new_tokens=max_new_tokens, stop=stop, use_cache=use_cache,
        compile=compiles(model, compile),
    )  # fmt: skip
    write = decoder_of(mode, order, model, options)
    tokens = as_tokens(read.rows[0], model.config)
    text = detokenizer_of(tokenizer, tokens, stop_strings(stop, tokenizer))
    if isinstance(text, Gaps):
        raise UserError(f"the prompt of a stream has a gap, {GAP}, but only what goes on is streamed: use generate.")
    steps = write(read.rows, range(1), lambda row, written: text.update(written))
    return Stream(pieces(steps, Recorder([tokens], range(1), model.config.eos_token_ids), text, read.texts[0]))


def compiles(model: Llama, compile: bool | Literal["auto"]) -> bool | Literal["auto"]:
    """Return whether passes may be compiled, which they are not where several processes take part.

    Raises:
        UserError: it shall be, but the network is split.
    """
    if not is_split(model):
        return compile
    if compile is True:
        raise UserError("compile is True, but the network is split over processes: leave compile out.")
    return False
