"""What users pass in place of a network, and look for on one, as they know it from transformers."""

from __future__ import annotations

import os
from typing import Any

from anyorder.utils.annotations import NETWORK_FIRST, Kind, UnfitError, is_tokenizer, shown

INSTEAD = {
    "generate": "generate(model, tokenizer, prompt)",
    "chat": "generate(model, tokenizer, messages)",
    "from_pretrained": "load(path)",
    "save_pretrained": "save(model, tokenizer, path)",
    "push_to_hub": "save(model, tokenizer, path)",
}
"""Methods of transformers' models that a plain network has not, and the functions of this package that do the same."""


def refuse_method_of_transformers(name: str) -> None:
    """Raise an `AttributeError` with the remedy if this is a method of transformers' models."""
    if name in INSTEAD:
        raise AttributeError(
            f"this network has no {name!r}, which is of transformers' models: use anyorder.{INSTEAD[name]}, or "
            "anyorder.AnyOrderForCausalLM (from_pretrained reads a checkpoint, and of(model) takes this network)."
        )


def _as_model(value: Any) -> Any:
    """A network as an argument; of one with adapters of PEFT around it, the network that they were put into."""
    if isinstance(value, str | os.PathLike):
        raise UnfitError(f"the network, not its place: model, tokenizer = anyorder.load({shown(str(value))})")
    if is_tokenizer(value):
        raise UnfitError(NETWORK_FIRST)
    if isinstance(value, tuple | list):
        raise UnfitError("its first item: model, tokenizer = anyorder.load(path)")
    if hasattr(value, "get_base_model") and hasattr(value, "active_peft_config"):
        if value.active_peft_config.is_prompt_learning:
            method = value.active_peft_config.peft_type.value
            raise UnfitError(f"adapters within the network, such as LoRA: those of {method} add rows to each call")
        return _as_model(value.get_base_model())
    if not hasattr(value, "prepare"):
        raise UnfitError
    return value


MODEL = Kind("the network that anyorder.load or AnyOrderForCausalLM.from_pretrained gives", _as_model, "networks")
"""What an annotation with the class of networks admits."""
