"""A network's shape in words."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from rich import box
from rich.table import Table

from anyorder.checkpoints.rotary_json import rotary_to_json
from anyorder.inspection.head_sharing import HeadSharing
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.modes import Mode
from anyorder.model.rope import Rotary
from anyorder.model.vision import VisionConfig
from anyorder.parallel.sizes import Sizes


def layers(kinds: tuple[LayerKind, ...]) -> str:
    """Return the number of layers, and of each kind where there are several: "4 (3 window of 512; 1 no rotary)"."""
    counted = collections.Counter(
        ", ".join(
            part
            for part, holds in (
                (f"window of {kind.window}", kind.window is not None),
                (f"chunks of {kind.chunk}", kind.chunk is not None),
                ("no rotary", kind.rotary is False),
                (f"rotary {own_rotary(kind)}", own_rotary(kind) != ""),
                ("growing queries", kind.query_scale is not None),
                ("experts", kind.experts),
            )
            if holds
        )
        or "full"
        for kind in kinds
    )
    if set(counted) == {"full"}:
        return str(len(kinds))
    return f"{len(kinds)} ({'; '.join(f'{count} {name}' for name, count in counted.items())})"


def own_rotary(kind: LayerKind) -> str:
    """Describe the rotary embedding of layers that have one of their own; empty for others."""
    return "" if isinstance(kind.rotary, bool) else rotary(kind.rotary)


def experts(mixture: Experts) -> str:
    """Number and width of the experts: "8 of width 1024, of which 2 read a token; one of width 512 reads all"."""
    shared = f"; one of width {mixture.shared_width} reads all" if mixture.shared_width else ""
    return f"{mixture.number} of width {mixture.width}, of which {mixture.chosen} read a token{shared}"


def heads(config: ModelConfig) -> str:
    """Describe the layout of the heads."""
    queries, shared = config.num_attention_heads, config.num_key_value_heads
    return f"{config.head_layout}: {queries} query and {shared} key-value heads of width {config.head_dim}"


def modes(config: ModelConfig) -> str:
    """Describe the modes of the network, the default first: "diffusion, mask token 5, shifted; left-to-right"."""

    def conventions(mode: Mode) -> str:
        block = "" if mode.block_length is None else f" of {mode.block_length}"
        mask = "" if mode.mask_token_id is None else f", mask token {mode.mask_token_id}"
        shifted = ", shifted" if mode.shifted and mode.mask_token_id is not None else ""
        return f"{mode.name}{block}{mask}{shifted}"

    return "; ".join(map(conventions, sorted(config.modes, key=lambda mode: mode.name != config.default_mode)))


def vision(config: VisionConfig) -> str:
    """The encoder of images, and how many rows they become."""
    tiles = f"{config.max_tiles} tiles of {config.image_size} x {config.image_size} pixels"
    layers = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    return f"{layers}; an image is up to {tiles}, each {config.rows_of_tile} rows"


def head_sharing(compared: Sequence[HeadSharing], config: ModelConfig) -> Table:
    """Return the versions of a network as a table; an arrow marks the one that it is."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("", "heads", "key-value heads", "parameters", "cache per token", "time per token"):
        table.add_column(column, justify="left" if column in ("", "heads") else "right")
    for version in compared:
        this = version.kv_heads == config.num_key_value_heads
        table.add_row(
            "→" if this else "",
            version.layout,
            str(version.kv_heads),
            f"{version.parameters:,}",
            in_bytes(version.cache_bytes),
            "-" if version.seconds is None else f"{1000 * version.seconds:.3g} ms",
            style="bold" if this else None,
        )
    return table


def rotary(embedding: Rotary) -> str:
    """Return the type of a rotary embedding and its numbers."""
    fields = rotary_to_json(embedding)
    kind = fields.pop("rope_type")
    numbers = (f"{name.removeprefix('rope_').replace('_', ' ')} {value:g}" for name, value in fields.items())
    return ", ".join([kind, *numbers])


def in_bytes(count: int) -> str:
    """Return bytes with a unit: "1.5 MiB"."""
    power = min((max(count, 1).bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def split(sizes: Sizes) -> dict[str, str]:
    """Return what one of many devices holds and sends."""
    layout, tokens = sizes.layout, sizes.config.max_position_embeddings
    return {
        "devices": f"{layout.devices:,}: {layout.tp} share each matrix, {layout.fsdp} such groups share all weights",
        "of each: weights": in_bytes(sizes.weights),
        "of each: training": f"{in_bytes(sizes.training)}: weights, gradients, AdamW's moments; activations beside",
        "of each: cache": f"{in_bytes(sizes.cache_per_token)} per token",
        "each sends: writing": f"{in_bytes(sizes.sent_in_pass(1, 1))} per token",
        "each sends: training": f"{in_bytes(sizes.sent_for_shards())} of weights and gradients per step, and "
        f"{in_bytes(sizes.sent_in_pass(tokens, 0))} in the forward pass of {tokens:,} tokens",
    }
