"""Writing from left to right: one pass over the prompts, then one token per row and pass.

Shapes: B rows of the batch, R tokens fed in a pass, D hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Step, StopReason, Written, collect
from anyorder.errors import UserError
from anyorder.visibility import causal

if TYPE_CHECKING:
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
        rows: number of each prompt, which decides its random draws; 0, 1, 2, ... unless given.

    Raises:
        UserError: no prompts, an empty prompt, a token id outside the vocabulary, a prompt that leaves no room in
            the trained length, a limit below 1, row numbers that do not fit, or logits that are not numbers.
    """
    rows = range(len(prompts)) if rows is None else rows
    steps = left_to_right_steps(
        model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, use_cache=use_cache, rows=rows
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
) -> Iterator[Step]:
    """The steps of `write_left_to_right`, each as soon as it is taken; mistakes are raised at once."""
    check_prompts(model.config, prompts, rows)
    if not (isinstance(max_new_tokens, int) and max_new_tokens > 0):
        raise UserError(f"max_new_tokens is {max_new_tokens!r}: give a whole number above 0.")
    return _steps(model, prompts, max_new_tokens, sampling, stop, use_cache, rows)


@torch.no_grad()
def _steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop | None,
    use_cache: bool,
    rows: Sequence[int],
) -> Iterator[Step]:
    device = next(model.parameters()).device
    end_token_ids = model.config.eos_token_ids
    trained_length = model.config.max_position_embeddings
    sequences = [list(prompt) for prompt in prompts]
    limits = [min(len(prompt) + max_new_tokens, trained_length) for prompt in prompts]
    generators = sampling.generators(rows)
    cache = model.new_cache(len(prompts), max(limits)) if use_cache else None
    known = [0] * len(prompts)  # how many tokens of each row the cache holds
    writing = list(range(len(prompts)))  # indices of the rows that are not complete

    for step in itertools.count():
        fresh: list[list[int]] = [[] for _ in prompts]
        for b in writing:
            fresh[b] = sequences[b][known[b] :]
        ids_BR, position_BR, valid_BR = pad_right(fresh, known, device)
        views = model.prepare(causal(), {"position": position_BR}, valid=valid_BR, cache=cache)
        hidden_BRD = model.hidden(ids_BR, views, cache)
        last_BD = hidden_BRD[writing, [len(fresh[b]) - 1 for b in writing]]
        chosen = sampling.choose(model.logits(last_BD), [generators[b] for b in writing])
        if cache is not None:
            known = [len(ids) for ids in sequences]

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


def pad_right(
    fresh: Sequence[Sequence[int]], start: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """A ragged batch as tensors: ids, positions, and which rows are no padding, each [B, R].

    `start` is the position of the first id of each sequence. Padding has id and position 0.
    """
    width = max(len(ids) for ids in fresh)
    ids_BR = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in fresh], device=device)
    length_B1 = torch.tensor([[len(ids)] for ids in fresh], device=device)
    index_BR = torch.arange(width, device=device).expand(len(fresh), width)
    valid_BR = index_BR < length_B1
    position_BR = (index_BR + torch.tensor(start, device=device)[:, None]) * valid_BR
    return ids_BR, position_BR, valid_BR


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
    """Refuses prompts that the network cannot continue.

    Raises:
        UserError: see `write_left_to_right`.
    """
    if not prompts:
        raise UserError("there are 0 prompts: give at least one.")
    if len(rows) != len(prompts) or len(set(rows)) != len(rows):
        raise UserError(f"rows is {list(rows)} for {len(prompts)} prompts: give each prompt a number of its own.")
    trained_length = config.max_position_embeddings
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
