"""What the transformers models of all modes have in common.

Shape suffixes: B batch, R rows, E hidden size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer

from anyorder.attention import TRANSFORMERS_NAMES
from anyorder.attention.backends import EagerMask
from anyorder.checkpoints import fetch, read_checkpoint
from anyorder.checkpoints.config_json import rules_of
from anyorder.checkpoints.contents import check_finite, contents_of
from anyorder.checkpoints.huggingface import GENERATION_CONFIG, check_layers_of, generation_to_json
from anyorder.checkpoints.json_files import write_json
from anyorder.checkpoints.layouts import patterns
from anyorder.checkpoints.masked_diffusion import FORMS
from anyorder.checkpoints.places import refuse_gguf
from anyorder.errors import UserError
from anyorder.huggingface.config import AnyOrderConfig
from anyorder.huggingface.versions import CACHE_NAMES
from anyorder.model import call
from anyorder.model.block import Block
from anyorder.model.experts import ExpertWeights, Router
from anyorder.model.int8 import Int8Linear
from anyorder.model.linear import Linear
from anyorder.model.llama import Decoder, Llama, Views
from anyorder.model.query_rows import QueryRows
from anyorder.parallel.plans import FULLY_SHARDED_HEAD, HEAD_PLAN


class CheckpointedBlock(GradientCheckpointingLayer, Block):
    """A layer that is computed again backwards instead of kept, where gradient checkpointing is enabled."""


class AnyOrderMixin(Llama, PreTrainedModel):
    """A network as a `PreTrainedModel`; how it is called, `forward`, each mode says itself."""

    config: AnyOrderConfig  # type: ignore[assignment]
    config_class = AnyOrderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The loss is divided by the number of tokens in all batches between two steps, not in each.
    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (as transformers has it)
    _tp_plan = dict(HEAD_PLAN)  # noqa: RUF012
    _fsdp_plan = dict(FULLY_SHARDED_HEAD)  # noqa: RUF012
    _no_split_modules = [CheckpointedBlock.__name__]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: AnyOrderConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = Decoder(config.backbone, CheckpointedBlock)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.query_rows = QueryRows(config.hidden_size) if config.has_query_rows else None
        self.add_vision(config.backbone)
        # transformers asks each part for its plan; `model` is none of its own classes, which take it from `config`.
        vars(self.model).update(_tp_plan=config.base_model_tp_plan, _fsdp_plan=config.base_model_fsdp_plan)
        self.post_init()

    @classmethod
    def of(cls, model: Llama) -> Self:
        """Wrap a network in this class: its modules and weights are shared, nothing is copied."""
        if isinstance(model, cls):
            return model
        names = {ours: theirs for theirs, ours in TRANSFORMERS_NAMES.items()}
        attention = names.get(TRANSFORMERS_NAMES.get(model.backend, model.backend))  # None means "auto"
        config = AnyOrderConfig(backbone=model.config, dtype=model.dtype, attn_implementation=attention)
        with torch.device("meta"):
            wrapped = cls(config)
        for layer in model.model.layers:
            layer.__class__ = CheckpointedBlock
        wrapped.model, wrapped.lm_head, wrapped.query_rows = model.model, model.lm_head, model.query_rows
        wrapped.vision_model, wrapped.multi_modal_projector = model.vision_model, model.multi_modal_projector
        return wrapped.train(model.training)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers' method does, from every architecture that this package reads.

        Raises:
            UserError: the folder's configuration has far more layers than its weights, or it is a GGUF file.
        """
        place = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if place is not None:
            refuse_gguf(Path(str(place)))
            # transformers' Auto classes give the configuration as well.
            layers = getattr(kwargs.get("config"), "num_hidden_layers", None)
            check_layers_of(Path(str(place), kwargs.get("subfolder") or ""), layers)
        if args and args[0] is not None and kwargs.get("state_dict") is None:
            args, kwargs = _with_tensors(args, kwargs)
        kwargs.setdefault("key_mapping", patterns(rule for form in FORMS for rule in form.tensors))
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model._tp_size and model.config.qk_norm != "learned-full-width":
            model.model.kv_heads = model.config.num_key_value_heads // model._tp_size
        if cls.can_generate():
            # Where config.json and generation_config.json disagree about it, `generate` follows the latter.
            if model.generation_config.eos_token_id is None:
                model.generation_config.eos_token_id = model.config.eos_token_id
            eos = model.generation_config.eos_token_id
            ends = [eos] if isinstance(eos, int) else eos or []
            model.config.eos_token_id = [end for end in ends if 0 <= end < model.config.vocab_size]
        if model.lm_head.weight is not model.model.embed_tokens.weight:
            model.config.tie_word_embeddings = False  # transformers ties no head that the folder has and that differs
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None, *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Save as transformers' method does: what `anyorder.save` writes, with its `generation_config.json`.

        An adapter that was added by `add_adapter` is written alone, in PEFT's form.

        Raises:
            UserError: what would be written cannot be read again: see `contents_of`. Nothing is written then.
        """
        kwargs.setdefault("save_original_format", False)  # under our names, wherever it was loaded from
        sharded = state_dict is None and any(isinstance(weight, DTensor) for weight in self.parameters())
        # Adapters are written alone, and shards are gathered by transformers.
        if is_main_process and not sharded and not getattr(self, "_hf_peft_config_loaded", False):
            contents = contents_of(self, state_dict)
            check_finite(contents)
            self.config.backbone, state_dict = contents.config, contents.tensors
        state = None if state_dict is None else dict(state_dict)
        super().save_pretrained(save_directory, is_main_process, state, *args, **kwargs)
        if is_main_process and not self.can_generate():
            write_json(Path(save_directory) / GENERATION_CONFIG, generation_to_json(self.config.backbone))

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize as transformers' method does, but in the same modules, which another model may share.

        Raises:
            UserError: a token that the configuration names would be lost, such as the mask token.
        """
        embedding, head = self.model.embed_tokens, self.lm_head
        if not (isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)):  # such as those of PEFT
            return super().resize_token_embeddings(*args, **kwargs)
        try:
            super().resize_token_embeddings(*args, **kwargs)
            new_embedding, new_head = self.model.embed_tokens, self.lm_head
        finally:
            self.model.embed_tokens, self.lm_head = embedding, head
        embedding.weight, head.weight = new_embedding.weight, new_head.weight
        embedding.num_embeddings = head.out_features = len(new_embedding.weight)
        return embedding

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie as transformers' method does; leave a head that has been rounded to integers as it is."""
        if not isinstance(self.lm_head, Int8Linear):
            PreTrainedModel.tie_weights(self, *args, **kwargs)

    def refuse_others(self, others: Mapping[str, Any]) -> None:
        """Refuse what tools pass to other networks.

        None and False change nothing and are passed over, and so are the zeros that some tokenizers give as
        `token_type_ids` of a single text.

        Raises:
            UserError: an argument has another value.
        """
        for name, value in others.items():
            zeros = name == "token_type_ids" and isinstance(value, Tensor) and not bool(value.any())
            if value is None or value is False or zeros:
                continue
            known = ", ".join(name for name in inspect.signature(self.forward).parameters if name != "others")
            raise UserError(
                f"argument {name!r} is unknown to {type(self).__name__}: leave it out, or give one of {known}."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ExpertWeights | Router):
            for name, weight in module.named_parameters(recurse=False):
                # transformers' function, which leaves alone what a checkpoint has.
                initialization.normal_(weight, std=0.0 if name == "expert_bias" else self.config.initializer_range)

    @property
    def backend(self) -> str:  # type: ignore[override]
        """The attention backend, by transformers' name; `set_attn_implementation` sets it."""
        return str(self.config._attn_implementation)


class NotCausalMixin(AnyOrderMixin):
    """A network whose logits are not those of the next token, which transformers' loop would take them for.

    Attributes:
        writes: how it writes instead, for the message.
    """

    writes: str
    generation_config = None  # type: ignore[assignment]  # which PEFT reads

    @classmethod
    def can_generate(cls) -> bool:
        """Return False: transformers' loop writes from left to right."""
        return False

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to generate.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"transformers' generate writes from left to right, and this network {self.writes}: use "
            "anyorder.generate(model, tokenizer, prompt)."
        )

    # PEFT takes it from every model of task_type CAUSAL_LM, also where nothing is generated.
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, as `generate` does.

        Raises:
            UserError: always.
        """
        return self.generate()

    def refuse_others(self, others: Mapping[str, Any]) -> None:
        """Refuse a cache with a message of its own, and others as in `AnyOrderMixin`.

        Raises:
            UserError: an argument has another value.
        """
        for name in ("use_cache", "past_key_values", "cache"):
            if others.get(name) not in (None, False):
                raise UserError(
                    f"{name} is given, but this network writes {self.writes} and is called without a cache: leave it "
                    "out (and use LoRA, IA3 or prompt tuning instead of prefix tuning)."
                )
        super().refuse_others(others)

    def rows_of(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, **beside: Tensor | None) -> Tensor:
        """Return the embedded tokens `[batch, length, hidden]`.

        Args:
            input_ids, inputs_embeds: one of the two.
            beside: further arguments of the call, each `[batch, length]` where given.

        Raises:
            UserError: both or neither is given, or a shape is another.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("both or neither of input_ids and inputs_embeds are given: give one of them.")
        if input_ids is not None:
            call.check_tokens(input_ids)
        rows_BLE: Tensor = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for name, given in beside.items():
            if given is not None and given.shape != rows_BLE.shape[:2]:
                raise UserError(f"{name} has the shape {list(given.shape)}: give {list(rows_BLE.shape[:2])}.")
        return rows_BLE


def _with_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `from_pretrained`, with the tensors where a file cuts or turns them otherwise than networks here."""
    known = {name: kwargs[name] for name in ("revision", "token", "subfolder", "cache_dir") if name in kwargs}
    fields = PreTrainedConfig.get_config_dict(args[0], **known)[0]
    if all(rule.renames for rule in rules_of(fields)):
        return args, kwargs
    folder = fetch(args[0], kwargs.get("revision"), kwargs.get("token"))
    checkpoint = read_checkpoint(folder / (kwargs.get("subfolder") or ""))
    config = kwargs.get("config") or AnyOrderConfig.from_pretrained(args[0], **known)
    tensors = {name: checkpoint.read(name) for name in checkpoint.shapes}
    return (None, *args[1:]), kwargs | {"config": config, "state_dict": tensors}


@contextlib.contextmanager
def inputs_of(layers: Sequence[nn.Module] | nn.ModuleList) -> Iterator[list[Tensor]]:
    """Provide a list that fills with the rows that each layer reads."""
    states: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, given: states.append(given[0])) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def watch_attention(views: Views) -> tuple[Views, list[Tensor]]:
    """Return views of the eager backend that fill a list with each layer's weights `[batch, heads, rows, keys]`."""
    seen: list[Tensor] = []
    watched = dict(views)
    for kind, view in views.items():
        if isinstance(view.mask, EagerMask):  # there is none of a pass without rows
            watched[kind] = dataclasses.replace(view, mask=dataclasses.replace(view.mask, watch=seen.append))
    return watched, seen
