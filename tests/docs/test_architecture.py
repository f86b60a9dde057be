"""The files and names that the pages for contributors lead to are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "anyorder"
PLACE = re.compile(r"`(?P<file>[a-z_0-9]+(?:/[a-z_0-9]+)+\.py)(?::(?P<name>[\w.]+))?`")


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_and_functions_are_there(page: str) -> None:
    places = list(PLACE.finditer((ROOT / page).read_text(encoding="utf-8")))
    assert len(places) > 5
    for place in places:
        within = ROOT if place["file"].startswith(("tests/", "docs/")) else PACKAGE
        source = (within / place["file"]).read_text(encoding="utf-8")
        for name in (place["name"] or "").split("."):
            assert not name or re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), place[0]
