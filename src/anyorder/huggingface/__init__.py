"""The network as models of transformers: `from_pretrained`, `generate`, `Trainer`, PEFT, evaluation harnesses.

Each model is the same `Llama`, module by module, so that one that is loaded already can be wrapped. Beside this
folder, only beam search puts transformers' classes around a network, to borrow their search, so what changes between
their versions is contained here. Importing this package makes transformers' `Auto` classes know its own.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from anyorder.huggingface.causal import AnyOrderForCausalLM
from anyorder.huggingface.config import PUBLISHED_CONFIGS, AnyOrderConfig
from anyorder.huggingface.masked import LLaDAForMaskedLM
from anyorder.huggingface.mixin import AnyOrderMixin
from anyorder.huggingface.past import PastKeyValues
from anyorder.huggingface.two_stream import LlamaTwoStreamForCausalLM

__all__ = [
    "AnyOrderConfig", "AnyOrderForCausalLM", "AnyOrderMixin", "LLaDAForMaskedLM", "LlamaTwoStreamForCausalLM",
    "PastKeyValues",
]  # fmt: skip

_configs: tuple[type[AnyOrderConfig], ...] = (AnyOrderConfig, *PUBLISHED_CONFIGS)
for _config in _configs:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
AutoModelForCausalLM.register(AnyOrderConfig, AnyOrderForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(AnyOrderConfig, LLaDAForMaskedLM, exist_ok=True)
AutoModel.register(AnyOrderConfig, LLaDAForMaskedLM, exist_ok=True)  # by which LLaDA and Dream are published
