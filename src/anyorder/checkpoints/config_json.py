"""`config.json`: a `ModelConfig` as transformers' architectures say it, or in our own words.

A network is written as the nearest architecture that can express it; any other under `model_type: "anyorder"`, with
every field of `ModelConfig`.
"""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Mapping
from typing import Any

from anyorder.checkpoints import vision_fields
from anyorder.checkpoints.architectures import (
    ARCHITECTURES,
    FIXED,
    NULLS,
    REQUIRED,
    Architecture,
    architecture_of,
)
from anyorder.checkpoints.diffusion_mixtures import DIFFUSION_MIXTURES
from anyorder.checkpoints.diffusion_mixtures import FIELD_TYPES as DIFFUSION_TYPES
from anyorder.checkpoints.json_types import Json, check_types
from anyorder.checkpoints.layer_fields import FIELD_TYPES, FULL, SLIDING
from anyorder.checkpoints.layouts import Rule
from anyorder.checkpoints.masked_diffusion import FORMS, Form, form_of
from anyorder.checkpoints.mixture_fields import FIELD_TYPES as MIXTURE_TYPES
from anyorder.checkpoints.nemotron import FIELD_TYPES as MINISTRAL_TYPES
from anyorder.checkpoints.nemotron import MINISTRAL3
from anyorder.checkpoints.rotary_json import (
    NATIVE_ROTARY,
    TRAINED_LENGTH_ELSEWHERE,
    any_rotary_from_json,
    our_rotary,
    our_rotary_to_json,
    rotary_from_json,
    rotary_to_json,
)
from anyorder.checkpoints.weights import listed
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.modes import LEFT_TO_RIGHT, Mode
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import Rotary
from anyorder.model.self_attention import SelfAttention, attention_class
from anyorder.model.vision import VisionConfig
from anyorder.utils.annotations import shown

logger = logging.getLogger(__name__)

Record = typing.TypeVar("Record", LayerKind, Mode, Experts, QueryScale, VisionConfig)

OURS = "AnyOrderForCausalLM"
"""The class of networks that no architecture of transformers can express, under `model_type: "anyorder"`."""


OF_TRANSFORMERS = (
    "dtype", "torch_dtype", "transformers_version", "use_cache", "output_hidden_states", "return_dict",
)  # fmt: skip
"""What transformers notes in our config.json beside the network."""


def config_from_json(fields: Json) -> ModelConfig:
    """The configuration that a `config.json` describes.

    Raises:
        UserError: it describes a network that is not supported, or a field is missing or wrong.
    """
    model_type = fields.get("model_type")
    form = form_of(fields)
    if form is not None:
        return _from_form(fields, form)
    if model_type == vision_fields.MODEL_TYPE:
        return _from_whole(fields)
    architecture = architecture_of(model_type)
    if architecture is None and model_type != "anyorder":
        known = [*(kind.model_type for kind in ARCHITECTURES), vision_fields.MODEL_TYPE, "anyorder"]
        known += [form.model_type for form in FORMS]
        raise UserError(f"model_type is {shown(model_type)}: this version reads {listed(dict.fromkeys(known))}.")
    _check_classes(fields, (OURS if architecture is None else architecture.class_name,))
    config = _from_anyorder(fields) if architecture is None else _from_native(fields, architecture)
    attention_class(config)  # which refuses a name that is not registered
    return config


def _check_classes(fields: Json, names: tuple[str, ...]) -> None:
    classes = fields.get("architectures") or [names[0]]
    if not isinstance(classes, list) or set(names).isdisjoint(map(str, classes)):
        model_type = fields.get("model_type")
        raise UserError(
            f"architectures is {shown(classes)}: of model_type {model_type!r}, this version reads {listed(names)}."
        )


def _from_form(fields: Json, form: Form) -> ModelConfig:
    _check_classes(fields, form.class_names)
    modes = form.modes(fields)
    return _from_native(form.read(fields), _native(form)).replace(modes=modes, default_mode=modes[0].name)


def _from_whole(fields: Json) -> ModelConfig:
    """A network with vision, around a text network."""
    _check_classes(fields, (vision_fields.CLASS_NAME,))
    text = architecture_of(vision_fields.TEXT)
    assert text is not None
    return _from_native(vision_fields.text_fields(fields), text).replace(vision=vision_fields.vision_of(fields))


def _native(form: Form) -> Architecture:
    return next(known for known in (*ARCHITECTURES, *DIFFUSION_MIXTURES, MINISTRAL3) if known.model_type == form.native)


def form_to_json(config: ModelConfig, form: Form) -> Json:
    """A `config.json` in the form in which a masked diffusion model is published.

    Raises:
        UserError: the form cannot express the network.
    """
    *others, mode = sorted(config.modes, key=lambda mode: mode.kind.diffuses)
    expected = [LEFT_TO_RIGHT] if form.causal else []
    if others != expected or not mode.kind.diffuses or mode.shifted != form.shifted:
        alone = "from left to right and by masked diffusion" if form.causal else "by masked diffusion alone"
        wanted = f"{alone}, {'shifted' if form.shifted else 'not shifted'}"
        raise UserError(f"form {form.name!r} is for networks that write {wanted}: leave out the form.")
    native = _to_native(config, _native(form))
    names = {"model_type": form.model_type, "architectures": [form.class_names[0]]}
    fields = form.write(native, mode) | names
    if attention_class(config) is not SelfAttention or _from_form(fields, form) != config:
        remedy = f"it is no {form.native} but for who sees whom, or its end tokens differ"
        raise UserError(f"form {form.name!r} cannot express this network ({remedy}): leave out the form.")
    return fields


def rules_of(fields: Json) -> tuple[Rule, ...]:
    """What the tensors beside a `config.json` are here, but for those that are the same."""
    form = form_of(fields)
    if form is not None:
        return (*form.tensors, *_native(form).tensors)
    if fields.get("model_type") == vision_fields.MODEL_TYPE:
        return vision_fields.TENSORS
    architecture = architecture_of(fields.get("model_type"))
    return () if architecture is None else architecture.tensors


def config_of_our_tensors(config: ModelConfig) -> Json:
    """A `config.json` for tensors that are as they are here, not as the architecture's own files have them."""
    fields = config_to_json(config)
    return our_config_to_json(config) if rules_of(fields) else fields


def config_to_json(config: ModelConfig) -> Json:
    """A `config.json`: of the first architecture that can express the network, ours otherwise.

    Raises:
        UserError: the rotary embedding or the attention is of a kind that is not registered, or cannot be written.
    """
    text = config.replace(vision=None)
    for architecture in ARCHITECTURES:
        if config.vision is not None and architecture.model_type != vision_fields.TEXT:
            continue
        fields = _to_native(config, architecture)
        if _expresses(fields, architecture, text):
            whole = fields if config.vision is None else vision_fields.whole_fields(fields, config)
            if whole is not None:
                return whole
    return our_config_to_json(config)


def _from_native(fields: Json, architecture: Architecture) -> ModelConfig:
    for name, allowed in FIXED.items():
        if name in fields and fields[name] not in allowed:
            value = shown(fields[name])
            raise UserError(f"{name} is {value}: this version reads networks with {allowed[0]!r} only.")
    others = architecture.others
    fields = {others.other_names.get(name, name): value for name, value in fields.items()}
    defaults = {**architecture.defaults, **architecture.layers.defaults, **others.defaults}
    known: Json = {name: fields.get(name) for name in REQUIRED}
    for name, default in defaults.items():
        value = fields.get(name, default)
        known[name] = NULLS.get(name, default) if value is None else value
    eos = known.pop("eos_token_id")
    known["eos_token_ids"] = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    _require(known)
    elsewhere_types = FIELD_TYPES | MIXTURE_TYPES | DIFFUSION_TYPES | MINISTRAL_TYPES
    check_types(known, typing.get_type_hints(ModelConfig) | elsewhere_types)
    said = others.read(known)
    experts = said.pop("experts", None)
    elsewhere = {*architecture.layers.defaults, *others.defaults}
    ours = {name: value for name, value in known.items() if name not in elsewhere}
    ours |= {**architecture.always, **said}
    lengths = {"max_position_embeddings": known["max_position_embeddings"]}
    full, sliding = _full_and_sliding(fields)
    read_rotary = any_rotary_from_json if architecture.part_of_heads else rotary_from_json
    if architecture.biased_output:
        ours["attention_output_bias"] = ours["attention_bias"]
    ours |= _writable(known)
    config = ModelConfig(rotary=read_rotary(full | lengths), **ours)
    layers = architecture.layers.read(known)  # as many as the configuration allows
    if sliding is not None:
        local = read_rotary(sliding | lengths)
        layers = tuple(
            dataclasses.replace(kind, rotary=local) if kind.rotary and kind.window is not None else kind
            for kind in layers
        )
    return config.replace(layers=layers, experts=experts if any(kind.experts for kind in layers) else None)


def _full_and_sliding(fields: Json) -> tuple[Json, Json | None]:
    """The fields as they are for layers that see the whole text, and for those with a window where these differ.

    transformers 5 nests `rope_parameters` by the type of layer where there are several rotary embeddings.
    """
    nested = fields.get("rope_parameters")
    if not isinstance(nested, Mapping) or not set(nested) & {FULL, SLIDING}:
        return fields, None
    for name in nested:
        if name not in (FULL, SLIDING):
            raise UserError(f"rope_parameters has the type of layer {shown(name)}: give {FULL!r} and {SLIDING!r}.")
    by_type = {name: fields | {"rope_parameters": nested.get(name)} for name in (FULL, SLIDING)}
    present = [name for name in by_type if nested.get(name) is not None]
    if not present:
        raise UserError("rope_parameters is empty: give the rotary embedding of each type of layer.")
    return by_type[present[0]], by_type[SLIDING] if SLIDING in present else None


def _writable(fields: Json) -> Json:
    """The begin and end tokens that are in the vocabulary; networks that are cut down for tests name others."""
    size, bos, eos = (fields[name] for name in ("vocab_size", "bos_token_id", "eos_token_ids"))
    beyond = [token_id for token_id in (bos, *eos) if token_id is not None and not 0 <= token_id < size]
    if beyond:
        logger.warning(
            "the begin or end tokens %s are not among the network's %d tokens, so no text begins or ends with them",
            shown(beyond), size,
        )  # fmt: skip
    return {
        "bos_token_id": None if bos in beyond else bos,
        "eos_token_ids": tuple(token_id for token_id in eos if token_id not in beyond),
    }


def _to_native(config: ModelConfig, architecture: Architecture) -> Json:
    """The fields of an architecture; what it cannot express is lost."""
    rotary = rotary_to_json(config.rotary)
    if rotary["rope_type"] in TRAINED_LENGTH_ELSEWHERE:
        rotary.pop("original_max_position_embeddings", None)
    # Older readers know `rope_theta` and `rope_scaling` only; transformers 5 reads both and finds the same.
    scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
    ours = {name: getattr(config, name) for name in (*REQUIRED, *architecture.defaults) if name != "eos_token_id"}
    hints = typing.get_type_hints(ModelConfig)
    return {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        # transformers refuses whole numbers where it expects others.
        **{
            name: float(value) if hints[name] is float else value
            for name, value in ours.items()
            if name not in architecture.unwritten
        },
        **architecture.layers.write(config.layers),
        **architecture.others.write(config),
        "hidden_act": "silu",
        "rope_parameters": rotary,
        "rope_theta": rotary["rope_theta"],
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "eos_token_id": ends_to_json(config.eos_token_ids),
    }


def ends_to_json(eos: tuple[int, ...]) -> int | list[int] | None:
    """The end tokens as transformers has them: one, several, or none."""
    return None if not eos else eos[0] if len(eos) == 1 else list(eos)


def _expresses(fields: Json, architecture: Architecture, config: ModelConfig) -> bool:
    """Whether `fields` say all that `config` says, and transformers takes them."""
    padded = config.pad_token_id is None or config.pad_token_id < config.vocab_size
    if not (padded and architecture.takes(config) and attention_class(config) is SelfAttention):
        return False
    if NATIVE_ROTARY.get(fields["rope_parameters"]["rope_type"]) is not type(config.rotary):
        return False
    try:
        return _from_native(fields, architecture) == config
    except UserError:
        return False


RENAMED = {"ways": "modes", "default_way": "default_mode"}
"""Fields of our own form under the names that earlier versions wrote, and their names now."""


def with_new_names(fields: Json) -> Json:
    """Return the fields of our own form, also where an earlier version wrote them."""
    return {RENAMED.get(name, name): value for name, value in fields.items()}


def _from_anyorder(fields: Json) -> ModelConfig:
    fields = with_new_names(fields)
    ours = {field.name for field in dataclasses.fields(ModelConfig)}
    beside = {"model_type", "architectures", "eos_token_id", *OF_TRANSFORMERS}
    for name in fields:
        if name not in ours | beside:
            raise UserError(f"field {shown(name)} is unknown: correct its spelling, or delete it.")
    known = {name: value for name, value in fields.items() if name in ours}
    known["rotary"] = our_rotary(fields.get("rotary"))
    if known.get("vision") is not None:
        known["vision"] = _record(VisionConfig, "vision", known["vision"])
    for name in ("layers", "eos_token_ids"):
        known[name] = known.get(name) or []
        if not isinstance(known[name], list):
            raise UserError(f"field {name!r} is {shown(known[name])}: give a list.")
    known["layers"] = tuple(_record(LayerKind, "layers", _with_records(entry)) for entry in known["layers"])
    if known.get("experts") is not None:
        known["experts"] = _record(Experts, "experts", known["experts"])
    known["eos_token_ids"] = _our_ends(fields.get("eos_token_id"), tuple(known["eos_token_ids"]))
    if "modes" in known:
        modes = known["modes"] if isinstance(known["modes"], list | tuple) else [known["modes"]]
        known["modes"] = tuple(_record(Mode, "modes", entry) for entry in modes)
    _require(known)
    check_types(known, typing.get_type_hints(ModelConfig))
    return ModelConfig(**known)


OF_ENDS = ("eos_token_id", "eos_token_ids")
"""transformers' field and ours."""


def _our_ends(eos: Any, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The end tokens, of which transformers' `eos_token_id` must say the same where both are given."""
    if eos is None:
        return ours
    theirs = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    check_types({"eos_token_id": theirs, "eos_token_ids": ours}, dict.fromkeys(OF_ENDS, tuple[int, ...]))
    if ours and set(ours) != set(theirs):
        raise UserError(f"eos_token_id is {shown(eos)}, but eos_token_ids is {list(ours)}: keep the one that is right.")
    return ours or theirs


def _record(kind: type[Record], name: str, fields: Any) -> Record:
    """Field `name`, or an entry of the list in it: an object of JSON as a frozen record."""
    if isinstance(fields, kind):
        return fields
    kinds = typing.get_type_hints(kind)
    if not isinstance(fields, dict) or not set(fields) <= set(kinds):
        raise UserError(f"field {name!r} has the entry {shown(fields)}: give objects with {listed(kinds)}.")
    check_types(fields, kinds)
    lacking = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in fields
    ]
    if lacking:
        raise UserError(f"field {name!r} has the entry {shown(fields)}, which lacks {lacking[0]!r}: add it.")
    return kind(**fields)


def _with_records(layer: Any) -> Any:
    """An entry of `layers`, whose own rotary embedding and query scale are objects of JSON."""
    if isinstance(layer, Mapping) and isinstance(layer.get("rotary"), Mapping):
        layer = {**layer, "rotary": our_rotary(layer["rotary"])}
    if isinstance(layer, Mapping) and layer.get("query_scale") is not None:
        layer = {**layer, "query_scale": _record(QueryScale, "query_scale", layer["query_scale"])}
    return layer


def _layer_to_json(layer: LayerKind) -> Json:
    fields = dataclasses.asdict(layer)
    if isinstance(layer.rotary, Rotary):
        fields["rotary"] = our_rotary_to_json(layer.rotary)
    return fields


def our_config_to_json(config: ModelConfig) -> Json:
    """A `config.json` with every field of `ModelConfig`, whether or not an architecture can express the network."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}
    return {
        "model_type": "anyorder",
        "architectures": [OURS],
        **fields,
        "rotary": our_rotary_to_json(config.rotary),
        "layers": [_layer_to_json(layer) for layer in config.layers],
        "eos_token_ids": list(config.eos_token_ids),
        "eos_token_id": ends_to_json(config.eos_token_ids),  # which transformers and others read
        "modes": [dataclasses.asdict(mode) for mode in config.modes],
        "experts": None if config.experts is None else dataclasses.asdict(config.experts),
        "vision": None if config.vision is None else dataclasses.asdict(config.vision),
    }


def _require(fields: Json) -> None:
    for name in REQUIRED:
        if fields.get(name) is None:
            raise UserError(f"field {name!r} is missing: add it.")
