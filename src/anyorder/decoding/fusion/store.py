"""Keys and values of prefixes and phrasings on disk, so that what was read once need not be read again.

What is recalled is exact: a phrasing counts as the same only behind the same prefix, read by the same network, and at
the same place. A phrasing without a prefix has looked at nothing but itself, so its keys can be turned to any place.

Shapes: N layers, R tokens, G key-value heads, D head dimension, E hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyorder.decoding.fusion.layout import FusionLayout
from anyorder.errors import UserError
from anyorder.model.rope import rotate
from anyorder.utils.files import BeingWrittenError, whole_file

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

SAMPLED = 1024
"""Weights of each tensor that tell networks apart."""


@dataclass(frozen=True)
class Entry:
    """A part of a question that has been read.

    Attributes:
        keys, values: of all layers, `[layers, tokens, kv_heads, head_dim]`.
        rows: after the last layer, `[tokens, hidden]`.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor


class SegmentStore:
    """A folder with one file for each prefix, and for each phrasing behind it.

    Args:
        folder: made where it is missing.
        model: the network that reads; a folder can hold what several have read.

    Raises:
        UserError: there is a file in the folder's place.
    """

    def __init__(self, folder: str | Path, model: Llama) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"store {str(folder)!r} is a file: give a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = model
        self.network = _fingerprint(model)

    def find(self, layout: FusionLayout, start: int, end: int) -> Entry | None:
        """What was read of this part of a layout; None where it has not been read.

        Raises:
            UserError: its file is damaged.
        """
        file = self._file(layout, start, end)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt", device=str(self.model.device)) as stored:
                keys, values, rows = (stored.get_tensor(name) for name in ("keys", "values", "rows"))
                told = stored.metadata()
            place = float(told["place"])
            if told["checksum"] != _checksum(told["place"], keys, values, rows):
                raise ValueError("its contents have changed")
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(f"{str(file)!r} is damaged ({error}): delete it, and its text is read again.") from error
        return Entry(self._turned(keys, layout.places[start] - place), values, rows)

    def keep(self, layout: FusionLayout, start: int, end: int, entry: Entry) -> None:
        """Write down what was read, whole or not at all; what is there or being written already stays."""
        file = self._file(layout, start, end)
        if file.exists():
            return
        tensors = {
            "keys": entry.keys.contiguous(),
            "values": entry.values.contiguous(),
            "rows": entry.rows.contiguous(),
        }
        place = repr(layout.places[start])
        with suppress(BeingWrittenError), whole_file(file, replace=True) as partial:
            save_file(tensors, partial, metadata={"place": place, "checksum": _checksum(place, *tensors.values())})

    def _file(self, layout: FusionLayout, start: int, end: int) -> Path:
        before = layout.prefix if start >= layout.prefix_length else ()
        places = layout.places[start:end]
        anywhere = start == 0 or not before
        if any(kind.chunk is not None for kind in self.model.config.layers):
            anywhere = False  # chunks are cut at fixed places
        first = places[0] if anywhere else 0.0
        told = ("with checksum", self.network, before, layout.token_ids[start:end], [place - first for place in places])
        return self.folder / f"{hashlib.sha256(repr(told).encode()).hexdigest()[:40]}.safetensors"

    def _turned(self, keys_NRGD: Tensor, by: float) -> Tensor:
        """Keys as they are so many positions further on."""
        if by == 0:
            return keys_NRGD
        config = self.model.config
        rotaries = [config.rotary_of(kind) for kind in config.layers]
        still_F = torch.zeros(config.head_dim // 2, dtype=torch.float64)
        frequencies = [
            still_F if rotary is None else rotary.frequencies(config.head_dim).double() for rotary in rotaries
        ]
        angle_N11F = by * torch.stack(frequencies).to(keys_NRGD.device)[:, None, None]
        turned_NRGD = rotate(keys_NRGD.to(angle_N11F.dtype), angle_N11F.cos(), angle_N11F.sin())
        return turned_NRGD.to(keys_NRGD.dtype)


def _checksum(place: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(place.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(model: Llama) -> str:
    """Tells networks apart by their shape and by some of their weights."""
    digest = hashlib.sha256(f"{model.config!r} {model.dtype}".encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLED)].to(torch.float64)
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sampled.cpu().numpy().tobytes())
    return digest.hexdigest()


def find_all(store: SegmentStore | None, pieces: Sequence[tuple[FusionLayout, int, int]]) -> list[Entry | None]:
    """What was read of each piece before; nothing of those without a token."""
    if store is None:
        return [None] * len(pieces)
    return [store.find(layout, start, end) if end > start else None for layout, start, end in pieces]
