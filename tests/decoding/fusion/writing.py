"""What tests of fusion share: whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyorder.decoding.fusion.decoder import fusion_steps
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import Fusion
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, collect
from anyorder.model.llama import Llama


def write_fused(
    model: Llama, questions: Sequence[Question], *, fusion: Fusion = Fusion(), max_new_tokens: int,  # noqa: B008
    sampling: Sampling = Sampling(), sample_ids: Sequence[int] | None = None, **options: Any,  # noqa: B008
) -> Generation:  # fmt: skip
    """The steps of the answers, taken to their end."""
    sample_ids = range(len(questions)) if sample_ids is None else sample_ids
    steps = fusion_steps(
        model, questions, fusion=fusion, max_new_tokens=max_new_tokens, sampling=sampling, sample_ids=sample_ids,
        **options,
    )  # fmt: skip
    prompts = [question.layout(fusion.positions).token_ids for question in questions]
    return collect(steps, prompts, sample_ids, model.config.eos_token_ids)
