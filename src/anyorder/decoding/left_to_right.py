"""Writing from left to right: one pass over the prompts, then one token per row and pass.

Shapes: B rows of the batch, R tokens fed in a pass, D hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Step, StopReason, Written, collect
from anyorder.errors import UserError
from anyorder.model.step import OneTokenStep, compiled_step, pays_to_compile
from anyorder.visibility import causal

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.config import ModelConfig
    from anyorder.model.llama import Llama

Stop = Callable[[int, Sequence[int]], bool]
"""Given a row's number and all that was written in it so far, whether the row is complete."""


def write_left_to_right(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    stop: Stop | None = None,
    use_cache: bool = True,
    compile: bool | Literal["auto"] = "auto",
    rows: Sequence[int] | None = None,
) -> Generation:
    """Continues every prompt until an end token, the stop condition or a limit of length.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        prompts: token ids, one sequence per prompt, of any lengths.
        max_new_tokens: tokens to write per prompt at most; nobody writes beyond the trained length either.
        sampling: how a token is chosen.
        stop: asked after each token that is no end token; the token itself stays.
        use_cache: False computes all rows again for each token: the slow, obvious twin.
        compile: whether the one-token step is compiled; "auto": where that can pay off, see `pays_to_compile`.
        rows: number of each prompt, which decides its random draws; 0, 1, 2, ... unless given.

    Raises:
        UserError: no prompts, an empty prompt, a token id outside the vocabulary, a prompt that leaves no room in
            the trained length, a limit below 1, row numbers that do not fit, or logits that are not numbers.
    """
    rows = range(len(prompts)) if rows is None else rows
    steps = left_to_right_steps(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        use_cache=use_cache,
        compile=compile,
        rows=rows,
    )
    return collect(steps, prompts, rows, model.config.eos_token_ids)


def left_to_right_steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop | None,
    use_cache: bool,
    rows: Sequence[int],
    compile: bool | Literal["auto"] = "auto",
) -> Iterator[Step]:
    """The steps of `write_left_to_right`, each as soon as it is taken; mistakes are raised at once."""
    check_prompts(model.config, prompts, rows)
    if not (isinstance(max_new_tokens, int) and max_new_tokens > 0):
        raise UserError(f"max_new_tokens is {max_new_tokens!r}: give a whole number above 0.")
    if compile not in (True, False, "auto"):
        raise UserError(f"compile is {compile!r}: give True, False or 'auto'.")
    if compile == "auto":
        compile = use_cache and pays_to_compile(model, max_new_tokens)
    if compile and not use_cache:
        raise UserError(
            "compile is True and use_cache is False: leave one of them out; the compiled step reads a cache."
        )
    one_token = compiled_step(model) if compile else None
    return _steps(model, prompts, max_new_tokens, sampling, stop, use_cache, one_token, rows)


@torch.no_grad()
def _steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop | None,
    use_cache: bool,
    one_token: OneTokenStep | None,
    rows: Sequence[int],
) -> Iterator[Step]:
    end_token_ids = model.config.eos_token_ids
    sequences = [list(prompt) for prompt in prompts]
    limits = [min(len(prompt) + max_new_tokens, model.config.context_length) for prompt in prompts]
    generators = sampling.generators(rows)
    reader = _Reader(model, max(limits), use_cache, one_token)
    writing = list(range(len(prompts)))  # indices of the rows that are not complete

    for step in itertools.count():
        logits_BV = reader.scores(sequences, writing)
        chosen = sampling.choose(logits_BV, [generators[b] for b in writing], [sequences[b] for b in writing])

        written: list[Written] = []
        stopped: dict[int, StopReason] = {}
        for b, token_id, log_prob in zip(writing, *(column.tolist() for column in chosen), strict=True):
            written.append(Written(step, rows[b], len(sequences[b]), token_id, _number(log_prob, rows[b])))
            sequences[b].append(token_id)
            if token_id in end_token_ids:
                stopped[rows[b]] = "end"
            elif stop is not None and stop(rows[b], sequences[b][len(prompts[b]) :]):
                stopped[rows[b]] = "stop"
            elif len(sequences[b]) == limits[b]:
                stopped[rows[b]] = "length"
        yield Step(tuple(written), stopped)

        writing = [b for b in writing if rows[b] not in stopped]
        if not writing:
            return


class _Reader:
    """The network's scores for the next token, with a cache or without, compiled or not."""

    def __init__(self, model: Llama, capacity: int, use_cache: bool, one_token: OneTokenStep | None) -> None:
        self.model = model
        self.capacity = capacity
        self.use_cache = use_cache
        self.one_token = one_token
        self.cache: Cache | None = None
        self.known: list[int] = []  # how many tokens of each row the cache holds

    def scores(self, sequences: Sequence[Sequence[int]], writing: Sequence[int]) -> Tensor:
        """Logits `[rows that are written, vocabulary]` of the token after each of these sequences."""
        cacheable = self.model.config.rotary.cacheable
        if cacheable is not None and max(map(len, sequences)) > cacheable:
            self.use_cache, self.cache = False, None
        if not self.use_cache:
            return self._read([sequences[b] for b in writing], None)
        if self.cache is None:
            return self._first(sequences)
        fresh = [sequences[b][known:] if b in writing else [] for b, known in enumerate(self.known)]
        ids_BR, position_BR, valid_BR = pad_right(fresh, self.known, self.model.device)
        if self.one_token is None:
            views = self.model.prepare(causal(), {"position": position_BR}, valid=valid_BR, cache=self.cache)
            logits_BV = self.model.logits(self.model.hidden(ids_BR, views, self.cache)[:, 0])
        else:
            keys = max(self.known) + 1
            logits_BV = self.one_token(self.model, ids_BR, position_BR, valid_BR, self.cache, keys=keys)
        self.known = [known + len(ids) for known, ids in zip(self.known, fresh, strict=True)]
        return logits_BV if len(writing) == len(sequences) else logits_BV[writing]

    def _first(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The pass over the prompts; those that are the same, as when one is sampled often, are read once."""
        different = list(dict.fromkeys(map(tuple, prompts)))
        self.cache = self.model.new_cache(len(different), self.capacity)
        self.known = [len(prompt) for prompt in prompts]
        logits_BV = self._read(different, self.cache)
        if len(different) == len(prompts):
            return logits_BV
        copies = torch.tensor([different.index(tuple(prompt)) for prompt in prompts], device=self.model.device)
        self.cache = self.cache.gather(copies)
        return logits_BV[copies]

    def _read(self, sequences: Sequence[Sequence[int]], cache: Cache | None) -> Tensor:
        """All of the sequences in one pass: logits of the token after each, `[batch, vocabulary]`."""
        ids_BR, position_BR, valid_BR = pad_right(sequences, [0] * len(sequences), self.model.device)
        views = self.model.prepare(causal(), {"position": position_BR}, valid=valid_BR, cache=cache)
        hidden_BRD = self.model.hidden(ids_BR, views, cache)
        return self.model.logits(hidden_BRD[range(len(sequences)), [len(ids) - 1 for ids in sequences]])


def pad_right(
    fresh: Sequence[Sequence[int]], start: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """A ragged batch as tensors: ids, positions, and which rows are no padding, each [B, R].

    `start` is the position of the first id of each sequence. Padding has id and position 0.
    """
    width = max(len(ids) for ids in fresh)
    missing = [width - len(ids) for ids in fresh]
    ids_BR = [[*ids, *[0] * n] for ids, n in zip(fresh, missing, strict=True)]
    position_BR = [[*range(at, at + width - n), *[0] * n] for at, n in zip(start, missing, strict=True)]
    valid_BR = [[True] * (width - n) + [False] * n for n in missing]
    return (
        torch.tensor(ids_BR, device=device),
        torch.tensor(position_BR, device=device),
        torch.tensor(valid_BR, dtype=torch.bool, device=device),
    )


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
    """Refuses prompts that the network cannot continue.

    Raises:
        UserError: see `write_left_to_right`.
    """
    if not prompts:
        raise UserError("there are 0 prompts: give at least one.")
    if len(rows) != len(prompts) or len(set(rows)) != len(rows):
        raise UserError(f"rows is {list(rows)} for {len(prompts)} prompts: give each prompt a number of its own.")
    trained_length = config.context_length
    for row, prompt in zip(rows, prompts, strict=True):
        if not prompt:
            raise UserError(f"prompt {row} has 0 tokens: give at least one, such as the token that begins a text.")
        for token_id in prompt:
            if not 0 <= token_id < config.vocab_size:
                remedy = f"give ids from 0 to {config.vocab_size - 1}, from the tokenizer of this network"
                raise UserError(f"prompt {row} has the token id {token_id}: {remedy}.")
        if len(prompt) >= trained_length:
            remedy = f"shorten it to at most {trained_length - 1}, which leaves room to write"
            raise UserError(
                f"prompt {row} has {len(prompt)} tokens, and the network was trained on {trained_length}: {remedy}."
            )


def _number(log_prob: float, row: int) -> float:
    if math.isnan(log_prob):
        raise UserError(f"the network's scores for row {row} are NaN: check its weights, or load it in float32.")
    return log_prob
