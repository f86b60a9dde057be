"""Reading questions laid out for fusion.

A prefix is read once for all segments behind it. All segments of all questions are then one batch, each beside the
keys of its prefix; no large masked matrix is needed, as they do not see each other. Their keys and values are joined
per question, for suffix and answer to be read over the joined cache.

Shape suffixes: Q questions, S segments of all questions, B rows of a batch, R tokens of a row, E hidden size,
V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.attention import BiasTerm, Tempered
from anyorder.decoding.fusion.layout import FusionLayout
from anyorder.decoding.fusion.store import Entry, SegmentStore, find_all
from anyorder.visibility import segments

if TYPE_CHECKING:
    from anyorder.model.cache import Cache
    from anyorder.model.llama import Llama, Views

Piece = tuple[FusionLayout, int, int]
"""The tokens from start to end of a layout."""


@dataclass(frozen=True)
class Joined:
    """Prefix and segments of each question, read.

    Attributes:
        cache: their keys and values, one sample per question, with room for what follows.
        before: for each question the last row `[1, hidden]` of its prefix, or `[0, hidden]` where there is none.
        segments: for each question the rows `[tokens, hidden]` of each segment.
        passes: forward passes that it took.
    """

    cache: Cache
    before: list[Tensor]
    segments: list[list[Tensor]]
    passes: int


@torch.no_grad()
def read_joined(model: Llama, layouts: Sequence[FusionLayout], more: int, store: SegmentStore | None = None) -> Joined:
    """Reads prefixes and segments, with room for `more` tokens behind them; not what the store has."""
    prefixes = list(dict.fromkeys(layout.prefix for layout in layouts))
    pieces = {layout.prefix: (layout, 0, layout.prefix_length) for layout in layouts}
    cache = model.new_cache(len(prefixes), max(map(len, prefixes)))
    hidden, passes = _read(model, [pieces[prefix] for prefix in prefixes], cache, store)
    of_question = [prefixes.index(layout.prefix) for layout in layouts]

    # A question without segments has a row as well, with no token, that holds its prefix.
    spans = [layout.segment_spans or ((0, 0),) for layout in layouts]
    read = [(layout, start, end) for layout, of_layout in zip(layouts, spans, strict=True) for start, end in of_layout]
    ends = list(itertools.accumulate(map(len, spans)))
    rows = [range(end - len(of_layout), end) for of_layout, end in zip(spans, ends, strict=True)]
    prefix_of_row = [b for b, of_layout in zip(of_question, spans, strict=True) for _ in of_layout]
    longest = max(end - start for _, start, end in read)
    cache = cache.gather(torch.tensor(prefix_of_row, device=model.device), capacity=cache.capacity + longest)
    of_row, more_passes = _read(model, read, cache, store)
    segments = [
        [of_row[row] for row, _ in zip(of_layout, layout.segment_spans, strict=False)]
        for layout, of_layout in zip(layouts, rows, strict=True)
    ]
    before = [hidden[b][-1:] for b in of_question]
    return Joined(_join(cache, layouts, rows, more), before, segments, passes + more_passes)


def _read(model: Llama, pieces: Sequence[Piece], cache: Cache, store: SegmentStore | None) -> tuple[list[Tensor], int]:
    """Puts pieces behind what the cache has: their rows `[tokens, hidden]`, and the passes that it took."""
    found = find_all(store, pieces)
    missing = [piece if entry is None else (piece[0], 0, 0) for piece, entry in zip(pieces, found, strict=True)]
    lengths = [end - start for _, start, end in pieces]
    first = cache.next_slot.tolist()
    passes = int(any(end > start for _, start, end in missing))
    hidden_BRE = torch.zeros(len(pieces), 0, model.config.hidden_size, dtype=model.dtype, device=model.device)
    if passes:
        hidden_BRE = read_pieces(model, missing, cache)
    if any(found):
        _recall(pieces, cache, found)
    rows = [
        hidden_BRE[b, : lengths[b]] if entry is None else entry.rows for b, entry in enumerate(found)
    ]  # fmt: skip
    if store is not None:
        for b, (piece, entry) in enumerate(zip(pieces, found, strict=True)):
            if entry is None and lengths[b]:
                slots = slice(first[b], first[b] + lengths[b])
                keys, values = (
                    torch.stack([getattr(layer, name)[b, slots] for layer in cache.layers])
                    for name in ("keys", "values")
                )
                store.keep(*piece, Entry(keys, values, rows[b]))
    return rows, passes


def _recall(pieces: Sequence[Piece], cache: Cache, found: Sequence[Entry | None]) -> None:
    """Writes what was found into the cache, as if it had been read."""
    shown = [piece if entry is not None else (piece[0], 0, 0) for piece, entry in zip(pieces, found, strict=True)]
    _, valid_BR, _, labels = lay_out(shown, cache.present.device)
    slots_BR = cache.put(labels, valid_BR)
    for number, layer in enumerate(cache.layers):
        keys, values = (layer.keys.new_zeros((*valid_BR.shape, *layer.keys.shape[2:])) for _ in range(2))
        for b, entry in enumerate(found):
            if entry is not None:
                keys[b, : entry.keys.shape[1]] = entry.keys[number]
                values[b, : entry.values.shape[1]] = entry.values[number]
        layer.update(keys, values, slots_BR, 0)


def _join(cache: Cache, layouts: Sequence[FusionLayout], rows: Sequence[Sequence[int]], more: int) -> Cache:
    """From a sample per segment to one per question, which has its prefix once."""
    total = max(layout.suffix_start for layout in layouts)
    row_QS, slot_QS = torch.zeros(2, len(layouts), total, dtype=torch.long)
    keep_QS = torch.zeros(len(layouts), total, dtype=torch.bool)
    for q, (layout, of_question) in enumerate(zip(layouts, rows, strict=True)):
        keep_QS[q, : layout.suffix_start] = True
        row_QS[q, : layout.prefix_length] = of_question[0]
        slot_QS[q, : layout.prefix_length] = torch.arange(layout.prefix_length)
        for row, (start, end) in zip(of_question, layout.segment_spans, strict=False):
            row_QS[q, start:end] = row
            slot_QS[q, start:end] = layout.prefix_length + torch.arange(end - start)
    device = cache.present.device
    return cache.gather(row_QS.to(device), slot_QS.to(device), keep_QS.to(device), total + more)


def read_pieces(
    model: Llama,
    pieces: Sequence[Piece],
    cache: Cache | None,
    bias: Sequence[BiasTerm] = (),
    tempered: Tempered | None = None,
    written: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Reads a part of each layout, and what was `written` behind it: rows `[batch, tokens, hidden]`, padded."""
    ids_BR, views, _ = prepare_pieces(model, pieces, cache, bias, tempered, written)
    return model.hidden(ids_BR, views, cache)


def prepare_pieces(
    model: Llama,
    pieces: Sequence[Piece],
    cache: Cache | None,
    bias: Sequence[BiasTerm] = (),
    tempered: Tempered | None = None,
    written: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, Views, dict[str, Tensor]]:
    """Tokens, views and labels of such a pass, before it is made."""
    ids_BR, valid_BR, place_BR, labels = lay_out(pieces, model.device, written)
    fractional = bool((place_BR != labels["position"]).any())
    views = model.prepare(
        segments(),
        labels,
        valid=valid_BR,
        cache=cache,
        bias=bias,
        tempered=tempered,
        rotary_positions=place_BR if fractional else None,
    )
    return ids_BR, views, labels


def lay_out(
    pieces: Sequence[Piece], device: torch.device, written: Sequence[Sequence[int]] | None = None
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Tokens, which of them are no padding, places and labels of pieces, each `[batch, tokens]`."""
    width = max(end - start for _, start, end in pieces)
    shape = (len(pieces), width)
    ids_BR = torch.zeros(shape, dtype=torch.long)
    valid_BR = torch.zeros(shape, dtype=torch.bool)
    place_BR = torch.zeros(shape, dtype=torch.float64)
    label_BR: dict[str, Tensor] = {}
    for b, (layout, start, end) in enumerate(pieces):
        behind = () if written is None else written[b]
        part = slice(0, end - start)
        ids_BR[b, part] = torch.tensor((*layout.token_ids, *behind)[start:end], dtype=torch.long)
        valid_BR[b, part] = True
        place_BR[b, part] = layout.rotary_positions(len(behind))[0, start:end]
        for name, label in layout.labels(len(behind)).items():
            label_BR.setdefault(name, torch.zeros(shape, dtype=torch.long))[b, part] = label[0, start:end]
    labels = {name: label.to(device) for name, label in label_BR.items()}
    return ids_BR.to(device), valid_BR.to(device), place_BR.to(device), labels
