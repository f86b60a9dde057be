"""One Llama-family network that reads and writes text in any order."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyorder.api import convert, generate, load, save, stream
    from anyorder.huggingface import AnyOrderConfig, AnyOrderForCausalLM

__all__ = ["AnyOrderConfig", "AnyOrderForCausalLM", "convert", "generate", "load", "save", "stream"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # On first use, because PyTorch and transformers take seconds to import, and `anyorder --help` needs neither.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Names of classes are those of the transformers face, which takes longest.
    return getattr(importlib.import_module("anyorder.huggingface" if name[0].isupper() else "anyorder.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
