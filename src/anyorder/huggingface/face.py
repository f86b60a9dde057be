"""What the faces of all ways of writing have in common.

Shape suffixes: B batch, R rows, E hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from anyorder.attention import TRANSFORMERS_NAMES
from anyorder.checkpoints.masked_diffusion import FORMS
from anyorder.errors import UserError
from anyorder.huggingface.config import AnyOrderConfig
from anyorder.model.block import Block
from anyorder.model.cache import LayerCache
from anyorder.model.int8 import Int8Linear
from anyorder.model.linear import Linear
from anyorder.model.llama import Decoder, Llama
from anyorder.model.query_rows import QueryRows
from anyorder.model.view import View


class Face(Llama, PreTrainedModel):
    """A network as a `PreTrainedModel`; how it is called, `forward`, each way of writing says itself."""

    config: AnyOrderConfig  # type: ignore[assignment]
    config_class = AnyOrderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The loss is divided by the number of tokens in all batches between two steps, not in each.
    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (as transformers has it)
    _no_split_modules = [Block.__name__]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: AnyOrderConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = Decoder(config.backbone)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.query_rows = QueryRows(config.hidden_size) if config.has_query_rows else None
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def of(cls, network: Llama) -> Self:
        """The same network with this face: its modules and weights are shared, nothing is copied."""
        if isinstance(network, cls):
            return network
        names = {ours: theirs for theirs, ours in TRANSFORMERS_NAMES.items()}
        attention = names.get(TRANSFORMERS_NAMES.get(network.backend, network.backend))  # None stands for "auto"
        config = AnyOrderConfig(backbone=network.config, dtype=network.dtype, attn_implementation=attention)
        with torch.device("meta"):
            face = cls(config)
        face.model, face.lm_head, face.query_rows = network.model, network.lm_head, network.query_rows
        return face.train(network.training)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers' method, for every architecture that this package reads."""
        kwargs.setdefault("key_mapping", {old: new for form in FORMS for old, new in form.patterns.items()})
        loaded = super().from_pretrained(*args, **kwargs)
        face = loaded[0] if isinstance(loaded, tuple) else loaded
        # Where config.json and generation_config.json disagree about it, `generate` follows the latter.
        if cls.can_generate() and face.generation_config.eos_token_id is not None:
            eos = face.generation_config.eos_token_id
            ends = [eos] if isinstance(eos, int) else eos
            face.config.eos_token_id = [end for end in ends if 0 <= end < face.config.vocab_size]
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers' method; what `anyorder.save` writes, and a `generation_config.json`.

        Raises:
            UserError: the weights have been rounded to integers.
        """
        if any(isinstance(module, Int8Linear) for module in self.modules()):
            raise UserError(
                "the network's weights are int8, rounded for writing alone: save it as it was loaded before."
            )
        kwargs.setdefault("save_original_format", False)  # under our names, wherever it was loaded from
        super().save_pretrained(*args, **kwargs)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As transformers' method; a head that has been rounded to integers stays as it is."""
        if not isinstance(self.lm_head, Int8Linear):
            PreTrainedModel.tie_weights(self, *args, **kwargs)

    @property
    def backend(self) -> str:  # type: ignore[override]
        """The attention backend, by transformers' name; `set_attn_implementation` sets it."""
        return str(self.config._attn_implementation)

    def run_layer(self, layer: nn.Module, rows_BRE: Tensor, view: View, kv: LayerCache | None) -> Tensor:
        """One layer; with gradient checkpointing it is computed again backwards instead of kept."""
        if self.gradient_checkpointing and self.training and kv is None:
            again: Tensor = self._gradient_checkpointing_func(layer.__call__, rows_BRE, view, kv)
            return again
        return super().run_layer(layer, rows_BRE, view, kv)


class NotCausalFace(Face):
    """A network whose logits are not those of the next token, which transformers' loop would take them for.

    Attributes:
        writes: how it writes instead, for the message.
    """

    writes: str

    @classmethod
    def can_generate(cls) -> bool:
        """Not by transformers' loop, which writes from left to right."""
        return False

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Is refused.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"transformers' generate writes from left to right, and this network {self.writes}: use "
            "anyorder.generate(model, tokenizer, prompt)."
        )


@contextlib.contextmanager
def inputs_of(layers: Sequence[nn.Module] | nn.ModuleList) -> Iterator[list[Tensor]]:
    """A list that fills with the rows that each layer reads."""
    states: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, given: states.append(given[0])) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
