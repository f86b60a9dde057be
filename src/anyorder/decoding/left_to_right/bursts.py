"""Several most probable tokens in one call of compiled code, for networks so small that the calls take the time.

Shape suffixes: B batch, N tokens at most, E end tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Choice, Choose, decode, write_step
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step
from anyorder.model.compiled import CannotCompile, compiled
from anyorder.model.step import one_token, step_extent

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama

logger = logging.getLogger(__name__)

AT_MOST = 16
"""Tokens of a call: few enough that a text that is streamed still grows steadily."""

GREEDY = Sampling()

State = tuple[Tensor, Tensor, Tensor, Tensor]
"""The number of the next token, and of each row `[batch, 1]` the last token, its position, and tokens yet to write."""


def greedy_tokens(
    model: Llama, token_B1: Tensor, position_B1: Tensor, left_B1: Tensor, cache: Cache, extent: int, end_E: Tensor,
    token_BN: Tensor, log_prob_BN: Tensor,
) -> Tensor:  # fmt: skip
    """Write tokens, as `one_token` and `Sampling.choose` would one after the other, until no row has any left.

    Args:
        model: the network.
        token_B1: the last token of each row, which the cache does not hold yet.
        position_B1: its position.
        left_B1: tokens to write in each row, at most N.
        cache: what was read before, with room for the tokens.
        extent: slots of it to read, enough for the last token.
        end_E: tokens after which nothing is written.
        token_BN: filled with the tokens.
        log_prob_BN: filled with the logarithms of their probabilities.

    Returns:
        Tokens that the longest row wrote, int64, without dimensions.
    """

    def going(step: Tensor, token_B1: Tensor, position_B1: Tensor, left_B1: Tensor) -> Tensor:
        return (left_B1 > 0).any()

    def write(step: Tensor, token_B1: Tensor, position_B1: Tensor, left_B1: Tensor) -> State:
        logits_BV = one_token(model, token_B1, position_B1, left_B1 > 0, cache, extent)
        token_B, log_prob_B = GREEDY.choose(logits_BV, ())
        token_B1 = token_B.unsqueeze(1)
        column_B1 = step.expand_as(token_B1)
        token_BN.scatter_(1, column_B1, token_B1)
        log_prob_BN.scatter_(1, column_B1, log_prob_B.unsqueeze(1))
        left_B1 = (left_B1 - 1).masked_fill((token_B1 == end_E).any(1, keepdim=True), 0)
        return step + 1, token_B1, position_B1 + 1, left_B1

    start = torch.zeros((), dtype=torch.long, device=token_B1.device)
    return repeat(going, write, (start, token_B1, position_B1, left_B1))[0]


def repeat(going: Callable[..., Tensor], write: Callable[..., State], state: State) -> State:
    """Apply `write` to its own results while they are `going`; in a compiled function, this is a compiled loop."""
    if torch.compiler.is_compiling():
        result: State = while_loop(going, write, state)
        return result
    while bool(going(*state)):
        state = write(*state)
    return state


@torch.no_grad()
def burst_steps(texts: Sequence[CausalText], reader: CausalReader, choose: Choose[CausalText]) -> Iterator[Step]:
    """Write most probable tokens, up to `AT_MOST` in a call, for as long as that is possible; the rest one by one.

    Args:
        texts: the batch of the reader.
        reader: with a cache, which the first step fills as usual.
        choose: takes the most probable token.
    """
    step = next(decode(texts, reader, choose, stop=None))
    yield step
    writing = [text for text in texts if text.sample_id not in step.stopped]
    number = 1
    while writing and reader.cache is not None:
        # A text that stops before the others is at its end or its own limit; the limit of the cache holds for all.
        together = min(AT_MOST, reader.cacheable + 1 - max(len(text.tokens) for text in writing))
        if together < 1:
            break
        left = [min(text.limit - len(text.tokens), together) if text in writing else 0 for text in texts]
        try:
            columns = burst(reader.model, [text.tokens for text in texts], left, reader.cache)
        except CannotCompile as error:
            logger.warning("tokens are written one by one: several cannot be compiled (%s)", error)
            break
        for token_B, log_prob_B in columns:
            choices = [
                (text, [Choice(len(text.tokens), token_id, log_prob, log_prob)])
                for text, token_id, log_prob in zip(texts, token_B, log_prob_B, strict=True)
                if text in writing
            ]
            step = write_step(number, choices, stop=None)
            yield step
            writing = [text for text in writing if text.sample_id not in step.stopped]
            number += 1
    if writing:
        yield from decode(writing, reader, choose, stop=None, first_step=number)


def burst(
    model: Llama, sequences: Sequence[Sequence[int]], left: Sequence[int], cache: Cache
) -> list[tuple[list[int], list[float]]]:
    """Call the compiled `greedy_tokens`; return the tokens and log-probabilities of all rows, step by step.

    Args:
        model: the network.
        sequences: tokens of each row; the cache holds all of them but the last token, if the row is written on.
        left: tokens to write in each row, at most `AT_MOST`; 0 in those that are complete.
        cache: the keys of the rows.

    Raises:
        CannotCompile: at the first call.
    """
    token_BN = torch.zeros((len(sequences), AT_MOST), dtype=torch.long, device=model.device)
    log_prob_BN = torch.zeros_like(token_BN, dtype=torch.promote_types(model.dtype, torch.float32))
    end_E = torch.tensor(model.config.eos_token_ids or (-1,), device=model.device)
    rows_3B1 = [[[ids[-1]] for ids in sequences], [[len(ids) - 1] for ids in sequences], [[n] for n in left]]
    last_B1, position_B1, left_B1 = (torch.tensor(row_B1, device=model.device) for row_B1 in rows_3B1)
    keys = max(len(ids) + n - 1 for ids, n in zip(sequences, left, strict=True) if n > 0)
    steps = compiled(greedy_tokens, model)(
        model, last_B1, position_B1, left_B1, cache, step_extent(keys, cache.capacity), end_E, token_BN, log_prob_BN
    )
    written = slice(int(steps))
    return list(zip(token_BN.T[written].tolist(), log_prob_BN.T[written].tolist(), strict=True))
