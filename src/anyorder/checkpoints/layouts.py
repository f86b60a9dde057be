"""Tensors that files name, cut or turn otherwise than networks here do, as data: read and written by one table.

A `Rule` says so for all layers and experts; `pieces` lists, for the tensors of one network, which part of which tensor
is which part of another. Reading gathers the pieces of a tensor here, and writing those of a tensor there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyorder.checkpoints.weights import counted
from anyorder.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The tensors `ours`, rows below rows, are the tensors `theirs`, rows below rows.

    Attributes:
        ours: names, {} for the layer. Of several, `theirs` is a single one.
        theirs: names, {} for the layer and {expert} for the expert, which is the first dimension of the one here. Of
            several, all have equally many rows.
        transposed: matrices there are the transposes of those here.
        interleaved: rows are those of heads, in which rotation turns rows (0, 1), (2, 3), ... there, and rows
            (p, p + head_dim / 2) here.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False
    interleaved: bool = False

    @property
    def renames(self) -> bool:
        """Whether it says no more than another name."""
        one = len(self.ours) == len(self.theirs) == 1 and "{expert}" not in self.theirs[0]
        return one and not self.transposed and not self.interleaved


def patterns(rules: Iterable[Rule]) -> dict[str, str]:
    """The other names as regular expressions, and what replaces them, as transformers wants them."""
    return {
        f"^{re.escape(rule.theirs[0]).replace(re.escape('{}'), r'([0-9]+)')}$": rule.ours[0].replace("{}", r"\1")
        for rule in rules
        if rule.renames
    }


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a tensor here that is a part of a tensor there.

    Attributes:
        ours, at: the tensor here, and the index of the part.
        theirs, rows: the tensor there, and which of its rows; None: all.
        rule: how it is turned.
        shape: of the whole tensor there.
    """

    ours: str
    at: tuple[int | slice, ...]
    theirs: str
    rows: slice | None
    rule: Rule
    shape: tuple[int, ...]


def pieces(rules: Iterable[Rule], shapes: Shapes) -> list[Piece]:
    """All parts of tensors that rules are about, of those that a network has.

    Args:
        rules: of the form of its files.
        shapes: of its tensors, by their names here.
    """
    layers = sorted({int(match[1]) for name in shapes if (match := re.match(r"model\.layers\.(\d+)\.", name))})
    found: list[Piece] = []
    for rule in rules:
        for layer in layers if "{}" in rule.ours[0] else [0]:
            ours = [_filled(name, layer) for name in rule.ours]
            if all(name in shapes for name in ours):
                found += _of_layer(rule, layer, ours, shapes)
    return found


def _of_layer(rule: Rule, layer: int, ours: Sequence[str], shapes: Shapes) -> Iterator[Piece]:
    """The pieces of one layer's tensors."""
    by_expert = "{expert}" in rule.theirs[0]
    for expert in range(shapes[ours[0]][0]) if by_expert else [None]:
        theirs = [_filled(name, layer, expert) for name in rule.theirs]
        at = () if expert is None else (expert,)
        sizes = [shapes[name][len(at) :] for name in ours]
        starts = [0, *itertools.accumulate(size[0] for size in sizes)]
        total = (starts[-1] // len(theirs), *sizes[0][1:])
        shape = (*total[:-2], total[-1], total[-2]) if rule.transposed else total
        if len(theirs) == 1:
            for name, first, end in zip(ours, starts, starts[1:], strict=False):
                rows = None if len(ours) == 1 else slice(first, end)
                yield Piece(ours=name, at=at, theirs=theirs[0], rows=rows, rule=rule, shape=shape)
            continue
        for number, name in enumerate(theirs):
            part = slice(number * total[0], (number + 1) * total[0])
            yield Piece(ours=ours[0], at=(*at, part), theirs=name, rows=None, rule=rule, shape=shape)


def _filled(name: str, layer: int, expert: int | None = None) -> str:
    return name.replace("{}", str(layer)).replace("{expert}", str(expert))


def stored(tensors: Mapping[str, Tensor], rules: Iterable[Rule], head_dim: int) -> dict[str, Tensor]:
    """The tensors of a network under their names there; parts that need not be turned are no copies."""
    by_theirs: dict[str, list[Piece]] = {}
    for piece in pieces(rules, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        by_theirs.setdefault(piece.theirs, []).append(piece)
    done = {piece.ours for parts in by_theirs.values() for piece in parts}
    found = {name: tensor for name, tensor in tensors.items() if name not in done}
    for name, parts in by_theirs.items():
        made = [_theirs(tensors[piece.ours][piece.at], piece.rule, head_dim) for piece in parts]
        found[name] = made[0] if len(made) == 1 else torch.cat(made)
    return found


class Gathered:
    """The tensors of a folder under their names here, of which a file holds parts.

    Args:
        path: of the folder, for messages.
        rules: of the form of its files.
        expected: shapes of the tensors that the network has, by their names here.
        found: shapes of the tensors in the files.
        head_dim: rows of a head.
        optional: names here of tensors that may be missing.

    Raises:
        UserError: parts of a tensor are missing, or have another shape.
    """

    def __init__(
        self, path: Path, rules: Iterable[Rule], expected: Shapes, found: Shapes, head_dim: int, optional: Sequence[str]
    ) -> None:  # fmt: skip
        self.head_dim = head_dim
        self.parts: dict[str, list[Piece]] = {}
        used: set[str] = set()
        missing: list[str] = []
        for piece in pieces(rules, expected):
            if piece.ours in found and piece.ours != piece.theirs:
                continue  # in one piece, as transformers keeps it in memory
            if piece.ours in optional and piece.theirs not in found:
                continue
            self.parts.setdefault(piece.ours, []).append(piece)
            if piece.theirs not in found:
                missing.append(piece.theirs)
            elif found[piece.theirs] != piece.shape:
                raise UserError(
                    f"tensor {piece.theirs!r} in {str(path)!r} has shape {list(found[piece.theirs])}, but the "
                    f"configuration asks for {list(piece.shape)}: mend the configuration, or fetch the weights again."
                )
            used.add(piece.theirs)
        if missing:
            raise UserError(
                f"checkpoint {str(path)!r} lacks {counted(list(dict.fromkeys(missing)))}: complete it, or mend the "
                "configuration beside it (layers, experts, biases)."
            )
        others = {name: shape for name, shape in found.items() if name not in used}
        self.shapes: dict[str, tuple[int, ...]] = {**others, **{name: tuple(expected[name]) for name in self.parts}}
        self.names = {name: [piece.theirs for piece in self.parts[name]] for name in self.parts}

    def read(self, name: str, part: Callable[[str, slice | None], Tensor], dtype: torch.dtype) -> Tensor:
        """A tensor here, in memory of its own.

        Args:
            name: here, one of `names`.
            part: reads rows of a tensor there (None: all).
            dtype: of the tensor.
        """
        parts = self.parts[name]
        if len(parts) == 1 and not parts[0].at:
            return _ours(part(parts[0].theirs, parts[0].rows), parts[0].rule, self.head_dim).clone()
        whole = torch.empty(self.shapes[name], dtype=dtype)
        for piece in parts:
            whole[piece.at] = _ours(part(piece.theirs, piece.rows), piece.rule, self.head_dim)
        return whole


def _ours(tensor: Tensor, rule: Rule, head_dim: int) -> Tensor:
    tensor = tensor.transpose(-1, -2) if rule.transposed else tensor
    return to_halves(tensor, head_dim) if rule.interleaved else tensor


def _theirs(tensor: Tensor, rule: Rule, head_dim: int) -> Tensor:
    tensor = to_interleaved(tensor, head_dim) if rule.interleaved else tensor
    return tensor.transpose(-1, -2) if rule.transposed else tensor


def to_halves(weight_R: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key projection, from interleaved pairs (0, 1), (2, 3), ... to pairs (p, p + K / 2)."""
    return weight_R.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape_as(weight_R)


def to_interleaved(weight_R: Tensor, head_dim: int) -> Tensor:
    """The inverse of `to_halves`."""
    return weight_R.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape_as(weight_R)
