"""Imports between rooms point one way, even those within functions and under TYPE_CHECKING."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def rooms(project_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_rooms", project_root / "docs" / "draw_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_room_has_its_floor(rooms: ModuleType) -> None:
    assert {room for floor in rooms.FLOORS for room in floor} == set(rooms.lines_by_room()) - set(rooms.ENTRANCES)


def test_rooms_import_from_the_floors_below_alone(rooms: ModuleType) -> None:
    """But for `cli`, which may use the public names of the package itself."""
    found = [one for one in rooms.imports() if (one.importer, one.imported) != ("cli", "__init__")]
    assert len(found) > 500
    assert [one for one in found if rooms.floor_of(one.importer) <= rooms.floor_of(one.imported)] == []


def test_imports_of_every_kind_are_found(rooms: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "import anyorder.cli.demo\n"
        "from anyorder import checkpoints, load\n"
        "if TYPE_CHECKING:\n"
        "    from anyorder.api.generate import generate\n"
        "def f() -> None:\n"
        "    from anyorder.training import runs\n"
    )
    found = [(one.line, one.importer, one.imported) for one in rooms.imports(tmp_path)]
    expected = [(2, "cli"), (3, "checkpoints"), (3, "__init__"), (5, "api"), (7, "training")]
    assert sorted(found) == sorted((line, "model", room) for line, room in expected)


def test_arrows_that_follow_from_others_are_left_out(rooms: ModuleType) -> None:
    assert rooms.direct({"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}}) == {"a": {"b"}, "b": {"c"}, "c": {"d"}}


def test_code_lines_are_those_that_do_something(rooms: ModuleType) -> None:
    source = (
        '"""Docs\nof a module."""\n\n# why\nx = [\n    1,\n]\n"""Docs of a constant."""\n\n\n'
        'def f() -> int:\n    """Docs."""\n    return 1\n'
    )
    assert rooms.code_lines(source) == 5


def test_the_picture_is_drawn(rooms: ModuleType, tmp_path: Path) -> None:
    rooms.draw(tmp_path / "rooms.svg")
    drawn = (tmp_path / "rooms.svg").read_text(encoding="utf-8")
    assert all(f">{room}<" in drawn for floor in rooms.FLOORS for room in floor)
