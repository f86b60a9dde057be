"""Text in, text out: where tokenizer and decoder meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as _short
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyorder import checkpoints
from anyorder.decoding.left_to_right import Stop, check_prompts, write_left_to_right
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, StopReason, Trace
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

LEFT_TO_RIGHT = "left-to-right"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""A checkpoint's folder that has one of these has a tokenizer."""

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers give for bytes that are no character."""

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True)
class Output:
    """What `generate` wrote.

    Attributes:
        text: the continuation, such that prompt + text reads on; a string for a single prompt, a list for a batch,
            None without a tokenizer. It ends before the end token and before a stop string.
        token_ids: all that was written, end token and stop string included: a list of ids for a single prompt, a
            list of such lists for a batch.
        sequences: prompt and all that was written, one list of ids per prompt, without padding.
        stopped: why each prompt's text ended: "end" (end token), "stop" (stop string) or "length".
        trace: what was written where, at which step and how surely; time and passes.
    """

    text: str | list[str] | None
    token_ids: list[int] | list[list[int]]
    sequences: list[list[int]]
    stopped: list[StopReason]
    trace: Trace

    @property
    def passes(self) -> int:
        """Forward passes of the network."""
        return self.trace.passes


def load(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attention: str = "auto",
    tokenizer: str | Path | None = None,
) -> tuple[Llama, PreTrainedTokenizerBase | None]:
    """Reads a network and its tokenizer, which is None where the checkpoint has none and none is named.

    Args:
        path: a checkpoint: a Hugging Face folder, or a llama2.c file.
        dtype: of the weights, such as "bfloat16"; "auto" keeps that of the checkpoint.
        device: such as "cpu" or "cuda:1"; "auto" takes a GPU where there is one.
        attention: "auto", "eager", "sdpa", "flex" or "flash", or transformers' name for it.
        tokenizer: where the tokenizer is, if not in the checkpoint's folder: a folder, a llama2.c tokenizer file or a
            SentencePiece model.

    Raises:
        UserError: the checkpoint is missing, damaged or of a kind that is not known, or the device or attention
            cannot be had here.
    """
    if tokenizer is None and any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = path
    # First, because it may be refused and the weights take longer.
    loaded = None if tokenizer is None else checkpoints.load_tokenizer(tokenizer)
    return checkpoints.load_model(path, dtype=dtype, device=device, backend=attention), loaded


def save(model: Llama, tokenizer: PreTrainedTokenizerBase | None, path: str | Path) -> None:
    """Writes a Hugging Face folder that `load` and transformers read, whole or not at all.

    Raises:
        UserError: the folder is not empty or cannot be written.
    """
    checkpoints.save_model(model, path, tokenizer=tokenizer)


def convert(source: str | Path, target: str | Path, **options: Any) -> None:
    """Reads a checkpoint of one form and writes another: `options` are those of `anyorder.checkpoints.convert`.

    Raises:
        UserError: the source cannot be read or the target cannot be written.
    """
    checkpoints.convert(source, target, **options)


def generate(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: Prompt,
    order: str = LEFT_TO_RIGHT,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    use_cache: bool = True,
) -> Output:
    """Continues a prompt, or each of a list of prompts.

    Args:
        model: the network.
        tokenizer: of the network; may be None where the prompts are token ids.
        prompt: a string, a list of strings, token ids (a list or a tensor `[tokens]`), or a list or tensor
            `[prompts, tokens]` of such. A list may be ragged. Nothing is added to token ids.
        order: the way of writing; "left-to-right" is the only one at present.
        max_new_tokens: tokens to write per prompt at most.
        temperature: 0 takes the most probable token each time; above 0, tokens are drawn.
        top_k, top_p: draw only among the most probable tokens: see `Sampling`.
        stop: strings that end the text; they are no part of `text`.
        seed: decides the draws, with the number of the prompt in the list: batches play no part.
        batch_size: prompts to write at a time; all unless given.
        use_cache: False computes everything again for each token, for those who doubt the cache.

    Raises:
        UserError: a prompt or an option that cannot be, in a sentence that names the remedy.
    """
    if order != LEFT_TO_RIGHT:
        raise UserError(f"order is {order!r}: give {LEFT_TO_RIGHT!r}, which is the only way of writing at present.")
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size > 0):
        raise UserError(f"batch_size is {batch_size!r}: give a whole number above 0, or None for all prompts at once.")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    prompts, single = _to_ids(model, tokenizer, prompt)
    check_prompts(model.config, prompts, range(len(prompts)))
    stops = _stop_strings(stop, tokenizer)
    stop_condition = _stop_condition(tokenizer, prompts, stops) if tokenizer is not None and stops else None

    size = batch_size or len(prompts)
    batches = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    generation = Generation.join(
        [
            write_left_to_right(
                model,
                [prompts[row] for row in rows],
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop=stop_condition,
                use_cache=use_cache,
                rows=rows,
            )
            for rows in batches
        ]
    )

    texts = None
    if tokenizer is not None:
        texts = [_text(tokenizer, generation, row, prompt, stops) for row, prompt in enumerate(prompts)]
    return Output(
        text=texts[0] if texts is not None and single else texts,
        token_ids=generation.written[0] if single else generation.written,
        sequences=generation.sequences,
        stopped=generation.stopped,
        trace=generation.trace,
    )


# ---- prompts ---------------------------------------------------------------------------------------


def _to_ids(model: Llama, tokenizer: PreTrainedTokenizerBase | None, prompt: Prompt) -> tuple[list[list[int]], bool]:
    """Token ids of each prompt, and whether a single prompt was given, not a list of them."""
    prompt = prompt.tolist() if isinstance(prompt, Tensor) else prompt
    if isinstance(prompt, str):
        return [_encode(model, tokenizer, prompt)], True
    if not isinstance(prompt, Sequence) or not prompt:
        raise UserError(
            f"the prompt is {_short(prompt)}: give a string, token ids, or a list of strings or of token ids."
        )
    if all(isinstance(text, str) for text in prompt):
        return [_encode(model, tokenizer, str(text)) for text in prompt], False
    if all(map(_is_id, prompt)):
        return [list(prompt)], True  # type: ignore[arg-type]
    rows = [row.tolist() if isinstance(row, Tensor) else row for row in prompt]
    for number, row in enumerate(rows):
        if not isinstance(row, Sequence) or isinstance(row, str) or not all(map(_is_id, row)):
            raise UserError(f"prompt {number} is {_short(row)}: give strings only, or lists of whole numbers only.")
    return [list(row) for row in rows], False  # type: ignore[arg-type]


def _encode(model: Llama, tokenizer: PreTrainedTokenizerBase | None, text: str) -> list[int]:
    if tokenizer is None:
        raise UserError(f"the prompt is text ({_short(text)}) and tokenizer is None: give the tokenizer, or token ids.")
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if not ids and model.config.bos_token_id is not None:
        return [model.config.bos_token_id]
    if not ids:
        raise UserError("the prompt is '' and this network has no token that begins a text: give at least one word.")
    return ids


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---- text ------------------------------------------------------------------------------------------


def _text(
    tokenizer: PreTrainedTokenizerBase, generation: Generation, row: int, prompt: list[int], stops: tuple[str, ...]
) -> str:
    """What was written in a row, as text, up to the end token or the first stop string."""
    written = generation.written[row]
    text = _spell(tokenizer, prompt, written[:-1] if generation.stopped[row] == "end" else written)
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _spell(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    """`ids` as the text that continues `before`, without a last character that lacks bytes.

    Alone they would read otherwise: SentencePiece drops the space at the beginning of a text, and a character may
    have its first bytes in `before`; then it counts as continuation.
    """
    (_, known), (_, whole) = _whole_characters(tokenizer, before), _whole_characters(tokenizer, [*before, *ids])
    return whole[len(known) :]


def _whole_characters(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[int, str]:
    """How many of `ids` come before a last character that lacks bytes, and their text.

    The tokens of such a character, up to 3, cannot just be decoded: some tokenizers then spoil all bytes before them.
    """
    for count in range(len(ids), max(0, len(ids) - 4), -1):
        text = _decode(tokenizer, ids[:count])
        if not text.endswith(UNREADABLE):
            return count, text
    return len(ids), _decode(tokenizer, ids)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Speller:
    """Text that grows token by token: each costs the decoding of a few, however long the text is."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int]) -> None:
        count, _ = _whole_characters(tokenizer, before)
        self.tokenizer = tokenizer
        self.context = list(before[:count])  # tokens that have been read last
        self.fresh = list(before[count:])  # tokens that cannot be read yet

    def add(self, token_id: int) -> str:
        """The text that can be read now and could not before; empty while a character lacks bytes."""
        self.fresh.append(token_id)
        known, text = _decode(self.tokenizer, self.context), _decode(self.tokenizer, self.context + self.fresh)
        if len(text) <= len(known) or text.endswith(UNREADABLE):
            return ""
        self.context, self.fresh = self.fresh, []
        return text[len(known) :]


def _stop_strings(stop: str | Sequence[str] | None, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    stops = () if stop is None else tuple(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else (stop,)
    if not all(isinstance(text, str) and text for text in stops):
        raise UserError(f"stop is {stop!r}: give strings of at least one character.")
    if stops and tokenizer is None:
        raise UserError(f"stop is {stop!r} and tokenizer is None: give the tokenizer, which tells where text stops.")
    return stops


def _stop_condition(tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], stops: tuple[str, ...]) -> Stop:
    """Whether the token written last completes a stop string, or is a special token that has its name."""
    stop_ids = {tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in tokenizer.all_special_tokens}
    longest = max(map(len, stops))
    spellers = [_Speller(tokenizer, prompt) for prompt in prompts]
    tails = [""] * len(prompts)  # the latest characters written, too few for a stop string

    def stopped(row: int, written: Sequence[int]) -> bool:
        tail = tails[row] + spellers[row].add(written[-1])
        tails[row] = tail[len(tail) - longest + 1 :] if len(tail) >= longest else tail
        return written[-1] in stop_ids or any(stop in tail for stop in stops)

    return stopped
