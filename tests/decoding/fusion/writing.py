"""What tests of fusion share: whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyorder.decoding.fusion.decoder import fusion_steps
from anyorder.decoding.fusion.question import Fusion, Question
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, collect
from anyorder.model.llama import Llama


def write_fused(
    model: Llama, questions: Sequence[Question], *, fusion: Fusion = Fusion(), max_new_tokens: int,  # noqa: B008
    sampling: Sampling = Sampling(), rows: Sequence[int] | None = None, **options: Any,  # noqa: B008
) -> Generation:  # fmt: skip
    """The steps of the answers, taken to their end."""
    rows = range(len(questions)) if rows is None else rows
    steps = fusion_steps(
        model, questions, fusion=fusion, max_new_tokens=max_new_tokens, sampling=sampling, rows=rows, **options
    )
    prompts = [question.layout(fusion.positions).token_ids for question in questions]
    return collect(steps, prompts, rows, model.config.eos_token_ids)
