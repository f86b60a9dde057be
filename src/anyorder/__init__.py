"""One Llama-family network that reads and writes text in any order."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyorder.api.chat import chat
    from anyorder.api.fuse import fuse, stream_fused
    from anyorder.api.generate import convert, generate, load, save, stream
    from anyorder.decoding.diffusion.sampler import DiffusionSampler
    from anyorder.decoding.fusion.layout import concatenate_paraphrases_with_positions, create_segment_isolation_mask
    from anyorder.errors import UserError
    from anyorder.huggingface import AnyOrderConfig, AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM
    from anyorder.likelihood.exact import log_prob
    from anyorder.orders.plan import GroupPlan
    from anyorder.visibility import create_chunked_attention_mask, generate_grouping_masks

__all__ = [
    "AnyOrderConfig", "AnyOrderForCausalLM", "DiffusionSampler", "GroupPlan", "LLaDAForMaskedLM",
    "LlamaTwoStreamForCausalLM", "UserError", "chat", "concatenate_paraphrases_with_positions", "convert",
    "create_chunked_attention_mask", "create_segment_isolation_mask", "fuse", "generate", "generate_grouping_masks",
    "load", "log_prob", "save", "stream", "stream_fused",
]  # fmt: skip
__version__ = "0.1.0"

_MODULES = {
    "AnyOrderConfig": "huggingface",
    "AnyOrderForCausalLM": "huggingface",
    "DiffusionSampler": "decoding.diffusion.sampler",
    "GroupPlan": "orders.plan",
    "LLaDAForMaskedLM": "huggingface",
    "LlamaTwoStreamForCausalLM": "huggingface",
    "UserError": "errors",
    "chat": "api.chat",
    "concatenate_paraphrases_with_positions": "decoding.fusion.layout",
    "create_chunked_attention_mask": "visibility",
    "create_segment_isolation_mask": "decoding.fusion.layout",
    "fuse": "api.fuse",
    "generate_grouping_masks": "visibility",
    "log_prob": "likelihood.exact",
    "stream_fused": "api.fuse",
}
"""Where the public names live; in `api.generate` unless named here."""


def __getattr__(name: str) -> object:
    # On first use, because PyTorch and transformers take seconds to import, and `anyorder --help` needs neither.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"anyorder.{_MODULES.get(name, 'api.generate')}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
