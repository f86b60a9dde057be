"""Writing from left to right: one pass over the prompts, then one token per row and pass.

Shapes: B rows of the batch, R tokens fed in a pass, D hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from anyorder.decoding.checks import check_max_new_tokens, check_prompts, checked_log_prob
from anyorder.decoding.left_to_right.bursts import AT_MOST, GreedyCalls, greedy_tokens
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Step, Stop, StopReason, Written, collect
from anyorder.errors import UserError
from anyorder.model.compiled import CannotCompile, Compiled, compiled, is_small, pays_to_compile
from anyorder.model.step import one_token, step_extent
from anyorder.utils.ragged import pad_right
from anyorder.visibility import causal

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama

logger = logging.getLogger(__name__)


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
    check_max_new_tokens(max_new_tokens)
    if compile not in (True, False, "auto"):
        raise UserError(f"compile is {compile!r}: give True, False or 'auto'.")
    if compile == "auto":
        function = greedy_tokens if _in_bursts(model, sampling, stop) else one_token
        steps = min(max_new_tokens, model.config.context_length - min(map(len, prompts)))
        compile = use_cache and pays_to_compile(function, model, len(prompts), steps)
    if compile and not use_cache:
        raise UserError(
            "compile is True and use_cache is False: leave one of them out; the compiled step reads a cache."
        )
    compiled_step = compiled(one_token, model) if compile else None
    return _steps(model, prompts, max_new_tokens, sampling, stop, use_cache, compiled_step, rows)


@torch.no_grad()
def _steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop | None,
    use_cache: bool,
    one_token: Compiled | None,
    rows: Sequence[int],
) -> Iterator[Step]:
    end_token_ids = model.config.eos_token_ids
    sequences = [list(prompt) for prompt in prompts]
    limits = [min(len(prompt) + max_new_tokens, model.config.context_length) for prompt in prompts]
    reader = _Reader(model, max(limits), use_cache, one_token)
    in_bursts = one_token is not None and _in_bursts(model, sampling, stop)
    chooser = _Chooser(reader, sampling, sampling.generators(rows), limits, in_bursts)
    writing = list(range(len(prompts)))  # indices of the rows that are not complete

    step = 0
    while writing:
        for chosen in chooser.following(sequences, writing):
            written: list[Written] = []
            stopped: dict[int, StopReason] = {}
            for b in writing:
                token_id, log_prob = chosen[b]
                written.append(Written(step, rows[b], len(sequences[b]), token_id, checked_log_prob(log_prob, rows[b])))
                sequences[b].append(token_id)
                if token_id in end_token_ids:
                    stopped[rows[b]] = "end"
                elif stop is not None and stop(rows[b], sequences[b][len(prompts[b]) :]):
                    stopped[rows[b]] = "stop"
                elif len(sequences[b]) == limits[b]:
                    stopped[rows[b]] = "length"
            writing = [b for b in writing if rows[b] not in stopped]
            step += 1
            yield Step(tuple(written), stopped)


def _in_bursts(model: Llama, sampling: Sampling, stop: Stop | None) -> bool:
    """Whether compiled code writes several tokens a call: no stop condition is asked, so that none can be too many."""
    return stop is None and sampling.most_probable and is_small(model)


Chosen = Mapping[int, tuple[int, float]]
"""Token and log-probability that one step adds to each row that is written, by the row's index."""


class _Chooser:
    """What comes next in each row: one token, or several where they cost one call only."""

    def __init__(
        self, reader: _Reader, sampling: Sampling, generators: Sequence[torch.Generator], limits: Sequence[int],
        in_bursts: bool,
    ) -> None:  # fmt: skip
        self.reader = reader
        self.sampling = sampling
        self.generators = generators
        self.limits = limits
        self.greedy = GreedyCalls(reader.model) if in_bursts else None

    def following(self, sequences: Sequence[Sequence[int]], writing: Sequence[int]) -> Sequence[Chosen]:
        """The next steps, at least one and not beyond the end of all rows."""
        # Whoever stops before the others has reached an end or its own limit; the limit of the cache holds for all.
        together = min(AT_MOST, self.reader.cacheable + 1 - max(len(sequences[b]) for b in writing))
        if self.greedy is not None and self.reader.cache is not None and together > 0:
            left = [0] * len(sequences)
            for b in writing:
                left[b] = min(self.limits[b] - len(sequences[b]), together)
            try:
                columns = self.greedy(sequences, left, self.reader.cache)
                return [{b: (token_B[b], log_prob_B[b]) for b in writing} for token_B, log_prob_B in columns]
            except CannotCompile as error:
                self.greedy = None
                logger.warning("tokens are written one by one: several cannot be compiled (%s)", error)
        logits_BV = self.reader.scores(sequences, writing)
        chosen = self.sampling.choose(
            logits_BV, [self.generators[b] for b in writing], [sequences[b] for b in writing]
        )  # fmt: skip
        return [dict(zip(writing, zip(*(column.tolist() for column in chosen), strict=True), strict=True))]


class _Reader:
    """The network's scores for the next token, with a cache or without, compiled or not.

    The cache holds all of each row but its last token, for as long as the row is written.
    """

    def __init__(self, model: Llama, capacity: int, use_cache: bool, one_token: Compiled | None) -> None:
        self.model = model
        self.capacity = capacity
        self.use_cache = use_cache
        self.one_token = one_token
        self.cache: Cache | None = None

    @property
    def cacheable(self) -> int:
        """Tokens of a row up to which it can be read from a cache."""
        limit = self.model.config.cacheable
        return self.capacity if limit is None else limit

    def scores(self, sequences: Sequence[Sequence[int]], writing: Sequence[int]) -> Tensor:
        """Logits `[rows that are written, vocabulary]` of the token after each of these sequences."""
        if max(map(len, sequences)) > self.cacheable:
            self.use_cache, self.cache = False, None
        if not self.use_cache:
            return self._read([sequences[b] for b in writing], None)
        if self.cache is None:
            return self._first(sequences)
        complete = [True] * len(sequences)
        for b in writing:
            complete[b] = False
        fresh = [[] if done else ids[-1:] for ids, done in zip(sequences, complete, strict=True)]
        ids_BR, position_BR, valid_BR = pad_right(fresh, [len(ids) - 1 for ids in sequences], self.model.device)
        logits_BV = self._one_token(ids_BR, position_BR, valid_BR, keys=max(len(sequences[b]) for b in writing))
        return logits_BV if len(writing) == len(sequences) else logits_BV[writing]

    def _one_token(self, ids_B1: Tensor, position_B1: Tensor, valid_B1: Tensor, keys: int) -> Tensor:
        assert self.cache is not None
        if self.one_token is not None:
            extent = step_extent(keys, self.cache.capacity)
            try:
                return self.one_token(self.model, ids_B1, position_B1, valid_B1, self.cache, extent)
            except CannotCompile as error:
                self.one_token = None
                logger.warning("writing goes on uncompiled: the one-token step cannot be compiled (%s)", error)
        views = self.model.prepare(causal(), {"position": position_B1}, valid=valid_B1, cache=self.cache)
        return self.model.logits(self.model.hidden(ids_B1, views, self.cache)[:, 0])

    def _first(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The pass over the prompts; those that are the same, as when one is sampled often, are read once."""
        different = list(dict.fromkeys(map(tuple, prompts)))
        self.cache = self.model.new_cache(len(different), self.capacity)
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
