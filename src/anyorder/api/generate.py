"""Text in, text out: where tokenizer and decoder meet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from anyorder import checkpoints
from anyorder.api.dispatch import Order, decoder_of, prompts_for, resolve, text_of
from anyorder.api.text import GAP, Continuation, Gaps, Prompt, stop_strings
from anyorder.decoding.beams import write_by_beam_search
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Recorder, Step, StopReason, Trace
from anyorder.errors import UserError
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.utils.annotations import checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


@checked()
def load(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attention: str = "auto",
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[Llama, PreTrainedTokenizerBase | None]:
    """Reads a network and its tokenizer, which is None where the checkpoint has none and none is named.

    Args:
        path: a checkpoint: a Hugging Face or Meta folder, a llama2.c file, or the id of a model on the hub.
        dtype: of the weights, such as "bfloat16"; "auto" keeps that of the checkpoint, and "int8" rounds those of the
            projections to 8 bits, for writing alone.
        device: such as "cpu" or "cuda:1"; "auto" takes a GPU where there is one.
        attention: "auto", "eager", "sdpa", "flex" or "flash", or transformers' name for it.
        tokenizer: where the tokenizer is, if not with the checkpoint: a folder, a llama2.c tokenizer file, a
            SentencePiece or tiktoken model, or the id of a model on the hub.
        revision: on the hub, a branch, a tag or a commit.
        token: for private and gated models on the hub; that of HF_TOKEN or of `hf auth login` unless given.

    Raises:
        UserError: the checkpoint is missing, damaged or of a kind that is not known, or the device or attention
            cannot be had here.
    """
    model, loaded = checkpoints.load(
        path, tokenizer=tokenizer, dtype="auto" if dtype == "int8" else dtype, device=device, backend=attention,
        revision=revision, token=token,
    )  # fmt: skip
    return (to_int8(model) if dtype == "int8" else model), loaded


@checked()
def save(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, path: str | Path, form: str | None = None
) -> None:  # fmt: skip
    """Writes a Hugging Face folder that `load` and transformers read, whole or not at all.

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
    """Reads a checkpoint of one form and writes another: `options` are those of `anyorder.checkpoints.convert`.

    Raises:
        UserError: the source cannot be read or the target cannot be written.
    """
    checkpoints.convert(source, target, **options)


@checked("prompt", "order", "stop")
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
) -> Output:
    """Continues a prompt, or fills its gaps; likewise each of a list of prompts.

    Args:
        model: the network.
        tokenizer: of the network; may be None where the prompts are token ids.
        prompt: a string, a list of strings, token ids (a list or a tensor `[tokens]`), or a list or tensor
            `[prompts, tokens]` of such; messages, each with role and content, or a list of dialogues; what
            `apply_chat_template` returns, whose padding is dropped. A list may be ragged. Nothing is added to token
            ids, and to text nothing that it carries already. Except from left to right, `[...]` in a text is a gap to
            be filled, and -1 among token ids a token to be written.
        order: the way of writing: "left-to-right", "any-order", "random", "groups:4" (and other names of
            `anyorder.orders.names`), "diffusion", "blocks:32"; or an object: a `GroupPlan`, an order
            of `anyorder.orders`, `MostConfident`, `Speculative`, a `DiffusionSampler`. The network's default unless
            given.
        max_new_tokens: tokens to write per text at most.
        gap_tokens: tokens to write in each gap of a text; `max_new_tokens` unless given. Of several lengths the one
            that makes the text most probable: see `anyorder.api.gap_lengths`.
        temperature: 0 takes the most probable token each time; above 0, tokens are drawn.
        top_k, top_p, min_p: draw only among the most probable tokens: see `Sampling`.
        repetition_penalty: above 1, tokens that the prompt or the text has already become rarer: see `Sampling`.
        stop: strings that end the text; they are no part of `text`. A gap is filled to its end, and takes none.
        seed: decides the draws, with the number of the prompt in the list: batches play no part.
        num_samples: texts to draw per prompt; a list of this many then stands for each text. They are drawn as if the
            prompt stood in the list so many times.
        num_beams: above 1, beam search with so many beams, as in transformers: of the texts that it meets, the one
            with the highest mean log-probability per token.
        batch_size: texts to write at a time; all unless given.
        use_cache: False computes everything again for each token, for those who doubt the cache.
        compile: whether the one-token step is compiled, which takes time at first use; "auto" does so where it pays.
        watch: is told each step as soon as it is taken; the time it needs does not count.

    Raises:
        UserError: a prompt or an option that cannot be, or options that exclude each other, in a sentence that names
            the remedy.
    """
    if isinstance(gap_tokens, Sequence):
        from anyorder.api.gap_lengths import generate_likeliest  # here, because it is made of this function

        return generate_likeliest(
            model, tokenizer, prompt, gap_tokens, order=order, max_new_tokens=max_new_tokens, temperature=temperature,
            top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, stop=stop, seed=seed,
            num_samples=num_samples, num_beams=num_beams, batch_size=batch_size, use_cache=use_cache, compile=compile,
            watch=watch,
        )  # fmt: skip
    if watch is not None and num_beams != 1:
        raise UserError(
            f"watch is given beside num_beams {num_beams!r}, but only the end tells what beams write: leave out one."
        )
    way, order = resolve(order, model.config)
    draws = order.draws if isinstance(order, DiffusionSampler) else temperature > 0
    _refuse_contradictions(temperature, draws, num_samples, num_beams, compile)
    if batch_size is not None and not _is_count(batch_size):
        raise UserError(f"batch_size is {batch_size!r}: give a whole number above 0, or None for all texts at once.")
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    steps = decoder_of(
        way, order, model, sampling=sampling, max_new_tokens=max_new_tokens, use_cache=use_cache, compile=compile,
        num_beams=num_beams, num_samples=num_samples or 1,
    )  # fmt: skip
    given, single = prompts_for(way, prompt, tokenizer, model.config, max_new_tokens, gap_tokens)
    prompts = [ids for ids in given for _ in range(num_samples or 1)]
    stops = stop_strings(stop, tokenizer)
    texts = None if tokenizer is None else [text_of(tokenizer, ids, stops) for ids in prompts]

    def stopped(row: int, written: Sequence[int]) -> bool:
        assert tokenizer is not None, "stop strings need it"
        assert texts is not None
        # Beams are alternatives, none of which reads on where another one ended.
        text = Continuation(tokenizer, prompts[row], stops) if num_beams > 1 else texts[row]
        return text.read(written)

    def write(rows: range) -> Generation:
        batch = [prompts[row] for row in rows]
        condition = stopped if stops else None
        if num_beams == 1:
            recorder = Recorder(batch, rows, model.config.eos_token_ids)
            for step in recorder.watch(steps(batch, rows, condition)):
                if watch is not None:
                    watch(step)
            return recorder.generation()
        return write_by_beam_search(
            model, batch, beams=num_beams, max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty,
            stop=condition, use_cache=use_cache, rows=rows,
        )  # fmt: skip

    size = batch_size or len(prompts)
    starts = range(0, len(prompts), size)
    generation = Generation.join([write(range(start, min(start + size, len(prompts)))) for start in starts])
    return _output(generation, texts, single=single, num_samples=num_samples)


@checked("prompt", "order", "stop")
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
) -> Stream:
    """Continues a single prompt as `generate` does, and gives the text piece by piece while it is written.

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
    way, order = resolve(order, model.config)
    write = decoder_of(
        way, order, model, sampling=sampling, max_new_tokens=max_new_tokens, use_cache=use_cache, compile=compile
    )
    prompts, single = prompts_for(way, prompt, tokenizer, model.config, max_new_tokens)
    if tokenizer is None:
        raise UserError("tokenizer is None: give the tokenizer, which makes the text to be streamed, or use generate.")
    if not single:
        raise UserError(f"the prompt of a stream is a list of {len(prompts)}: give one of them, or use generate.")
    text = text_of(tokenizer, prompts[0], stop_strings(stop, tokenizer))
    if isinstance(text, Gaps):
        raise UserError(f"the prompt of a stream has a gap, {GAP}, but only what goes on is streamed: use generate.")
    steps = write(prompts, range(1), lambda row, written: text.read(written))
    return Stream(_pieces(steps, Recorder(prompts, range(1), model.config.eos_token_ids), text))


def _pieces(steps: Iterator[Step], recorder: Recorder, text: Continuation) -> Generator[str, None, Output]:
    for step in recorder.watch(steps):
        if piece := text.piece(last=bool(step.stopped)):
            yield piece
    return _output(recorder.generation(), [text], single=True)


def _output(
    generation: Generation, texts: Sequence[Continuation | Gaps] | None, *, single: bool, num_samples: int | None = None
) -> Output:
    """The generation with its texts, in the form of the prompt."""

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


def _refuse_contradictions(
    temperature: float, draws: bool, num_samples: int | None, num_beams: int, compile: bool | Literal["auto"]
) -> None:
    if num_samples is not None and not _is_count(num_samples):
        raise UserError(f"num_samples is {num_samples!r}: give a whole number above 0, or None for a text each.")
    if not _is_count(num_beams):
        raise UserError(f"num_beams is {num_beams!r}: give a whole number above 0; 1 is no beam search.")
    if num_samples not in (None, 1) and not draws and num_beams == 1:
        same = f"num_samples is {num_samples} at temperature 0, where all samples are the same"
        raise UserError(f"{same}: give a temperature above 0, or leave out num_samples.")
    for name, value, given, why in (
        ("temperature", temperature, temperature != 0, "draws nothing"),
        ("num_samples", num_samples, num_samples is not None, "finds one text"),
        ("compile", compile, compile is True, "is not compiled"),
    ):
        if num_beams > 1 and given:
            raise UserError(f"{name} is {value!r} beside num_beams {num_beams}, but beam search {why}: leave out one.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
