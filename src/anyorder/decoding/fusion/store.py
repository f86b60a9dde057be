"""Keys and values of prefixes and phrasings on disk, so that what was read once need not be read again.

What is recalled is exact: a phrasing counts as the same only behind the same prefix, read by the same model, and at
the same place. A phrasing without a prefix has attended to itself alone, so its keys can be rotated to any place.

Shapes: N layers, R tokens, G key-value heads, D head dimension, E hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyorder.decoding.fusion.layout import Piece, lay_out
from anyorder.errors import UserError
from anyorder.model.cache import Cache
from anyorder.model.llama import Llama
from anyorder.model.rope import rotate
from anyorder.utils.files import BeingWrittenError, whole_file

SAMPLED = 1024
"""Weights of each tensor that enter the fingerprint of a model."""


Entry = dict[str, Tensor]
"""A piece of a question that has been read: "keys" and "values" of all layers, `[layers, tokens, kv_heads, head_dim]`,
and "rows" after the last layer, `[tokens, hidden]`."""


class SegmentStore:
    """A folder with one file for each prefix, and for each phrasing behind it.

    Args:
        folder: made where it is missing.
        model: the model that reads; a folder can hold the keys of several.

    Raises:
        UserError: there is a file in the folder's place.
    """

    def __init__(self, folder: str | Path, model: Llama) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"store {str(folder)!r} is a file: give a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = model
        self.fingerprint = _fingerprint(model)

    def recall(self, pieces: Sequence[Piece], cache: Cache) -> dict[int, Tensor]:
        """Append the stored pieces to the cache; return their rows `[tokens, hidden]` by index of the piece.

        Raises:
            UserError: a file is damaged.
        """
        found = {b: entry for b, piece in enumerate(pieces) if (entry := self._find(piece)) is not None}
        if found:
            rows = lay_out([piece if b in found else piece.empty for b, piece in enumerate(pieces)], self.model.device)
            slots_BR = cache.put(rows.labels, rows.valid)
            for b, entry in found.items():
                slots_R = slots_BR[b, : len(entry["rows"])]
                for layer, keys_RGD, values_RGD in zip(cache.layers, entry["keys"], entry["values"], strict=True):
                    layer.keys[b, slots_R], layer.values[b, slots_R] = keys_RGD, values_RGD
        return {b: entry["rows"] for b, entry in found.items()}

    def keep(self, pieces: Sequence[Piece], cache: Cache, rows: Sequence[Tensor]) -> None:
        """Write each piece that has tokens to its file, whole or not at all; existing files stay.

        Args:
            pieces: one for each sample of the cache.
            cache: the keys and values of each are the last ones of its sample.
            rows: after the last layer, `[tokens, hidden]` of each.
        """
        for b, (piece, end) in enumerate(zip(pieces, cache.next_slot.tolist(), strict=True)):
            if not piece.length or (file := self._file(piece)).exists():
                continue
            slots = slice(end - piece.length, end)
            entry: Entry = {
                "keys": torch.stack([layer.keys[b, slots] for layer in cache.layers]),
                "values": torch.stack([layer.values[b, slots] for layer in cache.layers]),
                "rows": rows[b].contiguous(),
            }
            place = repr(piece.place)
            metadata = {"place": place, "checksum": _checksum(place, entry)}
            with suppress(BeingWrittenError), whole_file(file, replace=True) as partial:
                save_file(entry, partial, metadata=metadata)

    def _find(self, piece: Piece) -> Entry | None:
        """Read the file of a piece, its keys rotated to the place of the piece; None where there is no file."""
        if not piece.length or not (file := self._file(piece)).is_file():
            return None
        try:
            with safe_open(file, "pt", device=str(self.model.device)) as stored:
                entry = {name: stored.get_tensor(name) for name in ("keys", "values", "rows")}
                metadata = stored.metadata()
            place = float(metadata["place"])
            if metadata["checksum"] != _checksum(metadata["place"], entry):
                raise ValueError("its contents have changed")
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(f"{str(file)!r} is damaged ({error}): delete it, and its text is read again.") from error
        return entry | {"keys": self._turned(entry["keys"], piece.place - place)}

    def _file(self, piece: Piece) -> Path:
        before = piece.layout.token_ids[: min(piece.start, piece.layout.prefix_length)]
        token_ids, places, _ = piece.columns
        chunked = any(kind.chunk is not None for kind in self.model.config.layers)  # at fixed places
        first = 0.0 if before or chunked else piece.place
        key = ("with checksum", self.fingerprint, before, token_ids, [place - first for place in places])
        return self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:40]}.safetensors"

    def _turned(self, keys_NRGD: Tensor, by: float) -> Tensor:
        """Rotate keys by this many positions."""
        if by == 0:
            return keys_NRGD
        config = self.model.config
        rotaries = [config.rotary_of(kind) for kind in config.layers]
        still_F = torch.zeros(config.head_dim // 2, dtype=torch.float64)
        frequencies = [still_F if each is None else each.frequencies(config.head_dim).double() for each in rotaries]
        angle_N11F = by * torch.stack(frequencies).to(keys_NRGD.device)[:, None, None]
        turned_NRGD = rotate(keys_NRGD.to(angle_N11F.dtype), angle_N11F.cos(), angle_N11F.sin())
        return turned_NRGD.to(keys_NRGD.dtype)


def _checksum(place: str, entry: Entry) -> str:
    digest = hashlib.sha256(place.encode())
    for tensor in entry.values():
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(model: Llama) -> str:
    """Return a hash that tells models apart by their shape and by some of their weights."""
    digest = hashlib.sha256(f"{model.config!r} {model.dtype}".encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLED)].to(torch.float64)
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sampled.cpu().numpy().tobytes())
    return digest.hexdigest()
