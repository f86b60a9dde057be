"""Draw the rooms of the code, and which imports which, from the imports themselves: docs/images/rooms.svg.

Run: python docs/draw_rooms.py

An arrow goes from a room to one that it imports; an arrow that follows from two others is left out. The number is that
of a room's lines of code, without blank lines, comments and docstrings.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent / "src" / "anyorder"
IMAGE = Path(__file__).parent / "images" / "rooms.svg"

FLOORS = (
    ("errors",),
    ("utils",),
    ("visibility",),
    ("attention",),
    ("model",),
    ("orders",),
    ("objectives", "decoding", "checkpoints"),
    ("parallel",),
    ("likelihood", "huggingface"),
    ("modes",),
    ("api", "data"),
    ("training",),
    ("evaluation", "inspection", "serving"),
    ("cli",),
)
"""Rooms from the ground upwards. A room imports from the floors below it, and from no other."""

ENTRANCES = ("__init__", "__main__")
"""Files that may import everything: the public names, and the command line's start."""


class Import(NamedTuple):
    """Attributes:
    file: relative to the package.
    line: counted from 1.
    importer, imported: rooms.
    """

    file: Path
    line: int
    importer: str
    imported: str


def imports(root: Path = ROOT) -> Iterator[Import]:
    """Yield the imports between rooms: those within functions and under TYPE_CHECKING, too."""
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in _modules(node):
                importer, imported = _room(file.parts[0].removesuffix(".py")), _room(module)
                if importer != imported:
                    yield Import(file, getattr(node, "lineno", 0), importer, imported)


def _modules(node: ast.AST) -> list[str]:
    """The modules of this package that a statement imports, without the package's name; "" for the package itself."""
    match node:
        case ast.ImportFrom(module="anyorder"):
            names = [alias.name for alias in node.names]
            return [name if _is_module(name) else "" for name in names]
        case ast.ImportFrom(module=str(module)):
            found = [module]
        case ast.Import():
            found = [alias.name for alias in node.names]
        case _:
            return []
    return [name.removeprefix("anyorder").lstrip(".") for name in found if name.split(".")[0] == "anyorder"]


def _is_module(name: str) -> bool:
    return (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()


def _room(module: str) -> str:
    first = module.split(".")[0]
    return first or "__init__"


def floor_of(room: str) -> int:
    """The floor of a room, counted from the ground; entrances lie above all.

    Raises:
        KeyError: the room is on no floor.
    """
    if room in ENTRANCES:
        return len(FLOORS)
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor
    raise KeyError(room)


def code_lines(source: str) -> int:
    """Count lines of code, without blank lines, comments and docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        # A string that is a statement of its own: a docstring of a module, class, function or constant.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def lines_by_room(root: Path = ROOT) -> Counter[str]:
    """Count the lines of code of each room."""
    counts: Counter[str] = Counter()
    for path in root.rglob("*.py"):
        counts[_room(path.relative_to(root).parts[0].removesuffix(".py"))] += code_lines(
            path.read_text(encoding="utf-8")
        )
    return counts


def direct(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Leave out edges that follow from two others (the transitive reduction of a graph without circles)."""

    def reached(room: str) -> set[str]:
        return edges.get(room, set()).union(*(reached(below) for below in edges.get(room, ())))

    return {
        room: {one for one in below if not any(one in reached(other) for other in below - {one})}
        for room, below in edges.items()
    }


def draw(path: Path = IMAGE) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "rooms", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    edges: dict[str, set[str]] = defaultdict(set)
    for found in imports():
        if found.importer not in ENTRANCES and found.imported not in ENTRANCES:
            edges[found.importer].add(found.imported)
    places = {
        room: ((number + 1) / (len(rooms) + 1), floor)
        for floor, rooms in enumerate(FLOORS)
        for number, room in enumerate(rooms)
    }
    figure, axes = pyplot.subplots(figsize=(9, 11))
    lines = lines_by_room()
    box = {"boxstyle": "round,pad=0.4", "facecolor": "#eaf1fb", "edgecolor": "#3b6fb6"}
    boxes = {
        room: axes.text(x, y, f"{room}\n{lines[room]:,}", ha="center", va="center", bbox=box).get_bbox_patch()
        for room, (x, y) in places.items()
    }
    for room, below in direct(edges).items():
        for other in sorted(below):  # the same picture each time
            ends = {"patchA": boxes[room], "patchB": boxes[other]}
            arrow = {"arrowstyle": "-|>", "color": "#6b7079", "shrinkA": 0, "shrinkB": 0, **ends}
            axes.annotate("", xy=places[other], xytext=places[room], arrowprops=arrow, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(FLOORS) - 0.4)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw()
    counts = lines_by_room()
    for name, count in counts.most_common():
        print(f"{name:12} {count:6,}")
    print(f"{'all':12} {counts.total():6,}")
