"""The page about this face cannot go stale: the names and links exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest


@pytest.fixture
def page(project_root: Path) -> str:
    return (project_root / "docs" / "transformers.md").read_text(encoding="utf-8")


def test_links_lead_somewhere(page: str, project_root: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (project_root / "docs" / link).is_file(), link


def test_versions_and_extras_are_those_of_the_package(page: str, project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    [transformers] = [name for name in project["dependencies"] if name.startswith("transformers")]
    oldest = re.search(r">=([\d.]+)", transformers)
    assert oldest is not None
    assert f"the oldest transformers that anyorder allows, {oldest[1]} (" in page
    for extra in ("train", "eval"):
        assert extra in project["optional-dependencies"]
