"""The configuration of a network, as transformers wants it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from anyorder.checkpoints.config_json import (
    config_from_json,
    config_of_our_tensors,
    our_config_to_json,
    with_new_names,
)
from anyorder.checkpoints.masked_diffusion import FORMS
from anyorder.checkpoints.published_mask import with_tokenizers_mask
from anyorder.huggingface.peft_defaults import enter_defaults
from anyorder.huggingface.versions import CACHE_NAMES
from anyorder.model.config import ModelConfig
from anyorder.model.rope import Rotary
from anyorder.parallel.plans import FULLY_SHARDED, transformers_plan

FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))

OF_THE_FILE = ("dtype", "transformers_version", "quantization_config")
"""What transformers notes in a config.json beside the network."""

OF_CALLS = {"use_cache": True, "output_hidden_states": False, "return_dict": True}
"""How a network is called unless an argument says otherwise; written where it is not as usual."""


class AnyOrderConfig(PreTrainedConfig):
    """The configuration of a network, as transformers wants it: a `ModelConfig`, and what transformers adds.

    Every field and property of the `ModelConfig` can be read here, and every field be set, which checks it. Built from
    `backbone`, from the fields of a `ModelConfig`, or from those of a `config.json`.

    Attributes:
        backbone: the configuration of the network.
        use_cache: whether passes without gradients return keys and values unless an argument says otherwise.

    Raises:
        UserError: a field has a value that no network can have.
    """

    model_type = "anyorder"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012 (transformers' own are lists)
    # transformers 5.16 would build one without arguments, to see what differs from it.
    has_no_defaults_at_init = True

    backbone: ModelConfig = None  # type: ignore[assignment]
    use_cache: bool = True

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    def __post_init__(self, **fields: Any) -> None:
        given = {name: fields.pop(name) for name in FIELDS if name in fields}
        if fields.get("eos_token_id") is None:
            fields.pop("eos_token_id", None)  # which would empty eos_token_ids
        if self.backbone is not None:
            self.backbone = self.backbone.replace(**given)
        elif isinstance(given.get("rotary"), Rotary):
            self.backbone = ModelConfig(**given)
        else:
            ends = {"eos_token_id": fields.pop("eos_token_id", None)}  # which must agree with eos_token_ids
            self.backbone = config_from_json({"model_type": self.model_type} | ends | given)
        super().__post_init__(**fields)

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not found otherwise.
        backbone = self.__dict__.get("backbone")
        if backbone is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(backbone, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIELDS:
            self.backbone = self.backbone.replace(**{name: value})
        else:
            super().__setattr__(name, value)

    @property
    def eos_token_id(self) -> int | list[int] | None:
        """The tokens that end a text: one, several, or none.

        Setting a single one of several makes it the first of them, since transformers' `Trainer`, up to some version,
        sets the tokenizer's alone. A list, or `eos_token_ids`, replaces them all.
        """
        eos = self.backbone.eos_token_ids
        return None if not eos else eos[0] if len(eos) == 1 else list(eos)

    @eos_token_id.setter
    def eos_token_id(self, eos: int | Sequence[int] | None) -> None:
        if isinstance(eos, int):
            before = self.backbone.eos_token_ids
            eos = (eos, *(other for other in before if other != eos)) if eos in before else (eos,)
        self.eos_token_ids = () if eos is None else tuple(eos)

    @property
    def base_model_tp_plan(self) -> dict[str, str]:  # type: ignore[override]
        """How transformers and vLLM split the network over processes."""
        return transformers_plan(self.backbone)

    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]) -> None:
        """Do nothing: transformers 5.16 adds the tied embedding here, which the plan of the backbone has already."""

    @property
    def base_model_fsdp_plan(self) -> dict[str, str]:  # type: ignore[override]
        """Which modules transformers gathers at a time in fully sharded data parallelism."""
        return dict(FULLY_SHARDED)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a `config.json` says, of any architecture that this package reads, in fields of this class.

        Raises:
            UserError: it describes a network that is not supported.
        """
        fields, unused = super().get_config_dict(*args, **kwargs)
        folder = Path(str(args[0])) if args else Path()
        return _in_our_fields(with_tokenizers_mask(fields, folder)), unused

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, those of the backbone too, as JSON has them.

        PEFT calls this before it reads its defaults by `model_type`, so that they are entered here.
        """
        enter_defaults(self.model_type)
        fields: dict[str, Any] = super().to_dict()
        del fields["backbone"]
        backbone = our_config_to_json(self.backbone)
        del backbone["architectures"]
        return {
            **fields,
            **backbone,
            "eos_token_id": self.eos_token_id,
        }

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Write the nearest architecture of transformers whose tensors are named as here, or else our own."""
        fields = config_of_our_tensors(self.backbone)
        noted = super().to_diff_dict()
        fields |= {name: noted[name] for name in OF_THE_FILE if name in noted}
        fields |= {name: getattr(self, name) for name, usual in OF_CALLS.items() if getattr(self, name) != usual}
        Path(json_file_path).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a configuration from the fields of this class, or from those of any `config.json` that is read."""
        return super().from_dict(_in_our_fields(config_dict), **kwargs)

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """Return a configuration from a file of `to_json_file`, or from any `config.json` that is read."""
        return cls.from_dict(cls._dict_from_json_file(json_file))


class PublishedConfig(AnyOrderConfig):
    """What a folder of a masked diffusion model as published has; it is read as an `AnyOrderConfig`."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return an `AnyOrderConfig`."""
        folder = Path(str(kwargs.get("name_or_path", "")))
        return AnyOrderConfig.from_dict(with_tokenizers_mask(config_dict, folder), **kwargs)


PUBLISHED_CONFIGS: tuple[type[PublishedConfig], ...] = tuple(
    type(f"{form.model_type}Config", (PublishedConfig,), {"model_type": form.model_type}) for form in FORMS
)
"""One for each `model_type`, by which transformers' `AutoConfig` finds them."""


def _in_our_fields(fields: dict[str, Any]) -> dict[str, Any]:
    ours = AnyOrderConfig.model_type
    if fields.get("model_type", ours) == ours:
        return with_new_names(fields)
    kept = {name: fields[name] for name in OF_CALLS if name in fields}
    dtype = fields.get("dtype", fields.get("torch_dtype"))
    return {"model_type": ours, "backbone": config_from_json(fields), "dtype": dtype, **kept}
