"""Rotary embeddings scaled for texts longer than those that a network was trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.rope import LinearRotary, Llama3Rotary, Rotary, YarnRotary

SCALINGS: dict[str, type[LinearRotary | YarnRotary | Llama3Rotary]] = {
    "linear": LinearRotary,
    "yarn": YarnRotary,
    "llama3": Llama3Rotary,
}
"""transformers' `rope_type` of each kind; "dynamic" is for networks that are not trained on longer texts."""

LLAMA3_BANDS: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""As Llama 3.1: turns within the trained length below which a wave is slowed, and above which it is kept."""


def extended(config: ModelConfig, scaling: str, length: int) -> ModelConfig:
    """Scale a network's rotary embedding so that it reaches over `length` tokens.

    One that is scaled in this way already gets a larger factor.

    Args:
        config: of a network that was trained on shorter texts.
        scaling: a name in `SCALINGS`.
        length: tokens.

    Raises:
        UserError: the embedding is scaled in another way, or layers that see the whole text have one of their own.
    """
    rotary = _scaled(config.rotary, scaling, config.context_length, length)
    longer = config.replace(rotary=rotary, max_position_embeddings=length)
    if longer.context_length < length:
        reach = longer.context_length
        raise UserError(f"some of its layers have an embedding of their own, which reaches over {reach} tokens.")
    return longer


def _scaled(rotary: Rotary, scaling: str, trained: int, length: int) -> Rotary:
    if isinstance(rotary, LinearRotary) and scaling == "linear":
        return dataclasses.replace(rotary, factor=rotary.factor * length / trained)
    if isinstance(rotary, YarnRotary | Llama3Rotary) and type(rotary) is SCALINGS[scaling]:
        return dataclasses.replace(rotary, factor=length / rotary.original_max_position_embeddings)
    if type(rotary) is not Rotary:
        raise UserError(f"its embedding is {type(rotary).__name__} already: give that kind, or a shorter length.")
    fields: dict[str, Any] = dataclasses.asdict(rotary) | {"factor": length / trained}
    if scaling != "linear":
        fields["original_max_position_embeddings"] = trained
    return SCALINGS[scaling](**fields, **(LLAMA3_BANDS if scaling == "llama3" else {}))
