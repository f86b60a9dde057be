"""How transformers' architectures say of which kind each layer is, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anyorder.checkpoints.json_types import Json
from anyorder.errors import UserError
from anyorder.model.config import LayerKind
from anyorder.utils.annotations import shown

Layers = tuple[LayerKind, ...]

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class LayerFields:
    """How an architecture says of which kind its layers are.

    Attributes:
        defaults: the fields that say so, with transformers' values for missing ones.
        read: kinds from all fields, none of which is missing.
        write: fields that say so if the architecture can; whether it can is seen when they are read back.
    """

    defaults: Mapping[str, Any]
    read: Callable[[Json], Layers]
    write: Callable[[Layers], Json]


FIELD_TYPES: dict[str, Any] = {
    "sliding_window": int | None,
    "use_sliding_window": bool,
    "max_window_layers": int,
    "layer_types": list[str] | None,
    "no_rope_layers": list[int] | None,
    "no_rope_layer_interval": int,
}
"""What the fields of all `LayerFields` may be."""


def read_alike(fields: Json) -> Layers:
    """All layers are of one kind: with a window if there is one."""
    window = fields.get("sliding_window")
    expected = FULL if window is None else SLIDING
    if any(name != expected for name in fields["layer_types"] or ()):
        remedy = f"give {expected!r} for all, since networks of this model_type have one kind of layer"
        raise UserError(f"field 'layer_types' is {shown(fields['layer_types'])}: {remedy}.")
    return (LayerKind(window=window),) * fields["num_hidden_layers"]


def read_typed(fields: Json) -> Layers:
    """`layer_types`, or else a window in all layers from `max_window_layers` on."""
    last_full = fields["max_window_layers"]
    windowed = [_window(fields) is not None and index >= last_full for index in range(fields["num_hidden_layers"])]
    return _with_types(fields, windowed, [True] * len(windowed))


def _read_nope(fields: Json) -> Layers:
    """Windows are in layers without rotary unless given."""
    rotary = nope_layers(fields)
    return _with_types(fields, [_window(fields) is not None and not has for has in rotary], rotary)


def nope_layers(fields: Json) -> list[bool]:
    """Which layers have rotary: `no_rope_layers`, in which 1 means that it has, or all but each interval's last."""
    number, rotary, interval = (
        fields[name] for name in ("num_hidden_layers", "no_rope_layers", "no_rope_layer_interval")
    )
    if rotary is None:
        if interval < 1:
            raise UserError(f"field 'no_rope_layer_interval' is {interval}: give a whole number above 0.")
        rotary = [int((index + 1) % interval != 0) for index in range(number)]
    if len(rotary) < number or not set(rotary) <= {0, 1}:
        remedy = f"give 1 or 0 for each of the {number} layers, with and without rotary"
        raise UserError(f"field 'no_rope_layers' is {shown(rotary)}: {remedy}.")
    return [bool(has) for has in rotary[:number]]


def _window(fields: Json) -> int | None:
    return fields["sliding_window"] if fields["use_sliding_window"] else None


def _with_types(fields: Json, windowed: list[bool], rotary: list[bool]) -> Layers:
    """Kinds of layers, of which `layer_types` says before `windowed` which have a window."""
    types, window = fields["layer_types"], _window(fields)
    if types is not None:
        if len(types) != len(windowed) or not set(types) <= {FULL, SLIDING}:
            remedy = f"give {FULL!r} or {SLIDING!r} for each of the {len(windowed)} layers"
            raise UserError(f"field 'layer_types' is {shown(types)}: {remedy}.")
        windowed = [name == SLIDING for name in types]
        if any(windowed) and window is None:
            remedy = "set use_sliding_window to true and sliding_window to the number of tokens"
            raise UserError(f"field 'layer_types' has {SLIDING!r}, but there is no window: {remedy}.")
    return tuple(
        LayerKind(rotary=has, window=window if narrow else None) for has, narrow in zip(rotary, windowed, strict=True)
    )


def write_typed(layers: Layers) -> Json:
    windows = [layer.window for layer in layers]
    first = next((index for index, window in enumerate(windows) if window is not None), len(layers))
    return {
        "use_sliding_window": first < len(layers),
        "sliding_window": windows[first] if first < len(layers) else None,
        "max_window_layers": first,
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }


def _write_nope(layers: Layers) -> Json:
    fields = write_typed(layers) | {"no_rope_layers": [int(layer.rotary is not False) for layer in layers]}
    del fields["max_window_layers"]
    return fields


ALL_FULL = LayerFields(defaults={"layer_types": None}, read=read_alike, write=lambda layers: {})
ALL_ALIKE = LayerFields(
    defaults={"layer_types": None, "sliding_window": 4096},
    read=read_alike,
    write=lambda layers: {"sliding_window": layers[0].window},
)
TYPED = LayerFields(
    defaults={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None},
    read=read_typed,
    write=write_typed,
)
TYPED_OR_NOPE = LayerFields(
    defaults={
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    read=_read_nope,
    write=_write_nope,
)
