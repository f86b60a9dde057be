"""Gaps whose length is not known: filled in several lengths, of which the most probable text is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anyorder.api.dispatch import prompts_for, resolve
from anyorder.api.generate import generate
from anyorder.api.output import Output
from anyorder.api.text import Prompt
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.trace import Trace
from anyorder.errors import UserError
from anyorder.likelihood.exact import log_prob
from anyorder.orders.plan import GroupPlan
from anyorder.ways import ANY_ORDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama


def generate_likeliest(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, prompt: Prompt, gap_tokens: Sequence[int], **options: Any
) -> Output:
    """Fills the gaps of each prompt in all these lengths, and keeps the length whose text is the most probable.

    What is compared is the exact log-probability, from left to right, of all that stands behind the first gap's begin,
    given what stands before: the gap and, with it, how well the rest follows. So lengths need no correction, as the
    tokens of a longer gap have to be paid for. All gaps of a prompt have the same length.

    Args:
        model, tokenizer, prompt: as in `generate`.
        gap_tokens: the lengths.
        options: those of `generate`.

    Raises:
        UserError: there are no lengths, samples are asked for, or see `generate` and `log_prob`.
    """
    if not gap_tokens:
        raise UserError(f"gap_tokens is {gap_tokens!r}: give at least one length.")
    for name in ("num_samples", "watch"):
        if options.get(name) is not None:
            raise UserError(f"{name} is given with several gap_tokens, {list(gap_tokens)}: leave out one of them.")
    model.config.way(ANY_ORDER.name)
    way, _ = resolve(options.get("order"), model.config)
    outs, scores = [], []
    for length in gap_tokens:
        canvases, single = prompts_for(way, prompt, tokenizer, model.config, options["max_new_tokens"], length)
        outs.append(generate(model, tokenizer, prompt, gap_tokens=length, **options))
        scores.append(_scores(model, canvases, outs[-1].sequences))
    best = [max(range(len(outs)), key=lambda choice: scores[choice][row]) for row in range(len(scores[0]))]

    def of(field: str) -> list[Any]:
        columns = [[getattr(out, field)] if single else getattr(out, field) for out in outs]
        return [columns[choice][row] for row, choice in enumerate(best)]

    texts, token_ids = (
        of(field) if outs[0].text is not None or field != "text" else None for field in ("text", "token_ids")
    )
    assert token_ids is not None
    events = [event for row, choice in enumerate(best) for event in outs[choice].trace.events if event.row == row]
    trace = Trace.join([out.trace for out in outs])
    return Output(
        text=texts[0] if texts and single else texts,
        token_ids=token_ids[0] if single else token_ids,
        sequences=[outs[choice].sequences[row] for row, choice in enumerate(best)],
        stopped=[outs[choice].stopped[row] for row, choice in enumerate(best)],
        trace=dataclasses.replace(
            trace,
            events=tuple(events),
            passes=trace.passes + len(outs),  # and one for each length that scores
        ),
    )


def _scores(model: Llama, canvases: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability of each text from its first blank on."""
    firsts = [list(canvas).index(BLANK) for canvas in canvases]
    plan = GroupPlan.sequential([len(sequence) for sequence in sequences], given=firsts)
    return log_prob(model, sequences, plan).total.tolist()
