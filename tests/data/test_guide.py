"""The guide to data: its code prints what it shows, its names and options exist."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from anyorder.data import DataConfig, prepare
from anyorder.data.files import COMPRESSED, SUFFIXES
from anyorder.data.forms import FORMS, SYSTEMS
from anyorder.data.messages import MARKS, REASONING
from anyorder.data.single_turn import ANSWERS, ASKING, CHOICES, HISTORIES
from tests import test_guides


@pytest.fixture
def page(project_root: Path) -> str:
    return (project_root / "docs" / "data.md").read_text(encoding="utf-8")


def test_names_links_and_options_exist(project_root: Path) -> None:
    test_guides.test_names_and_links_exist("data.md", project_root)
    test_guides.test_options_of_commands_exist("data.md", project_root)


def test_every_form_has_its_line(page: str) -> None:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    for form in FORMS:
        [line] = [line for line in lines if line.startswith(f"| {form.name} |")]
        assert all(f"`{names[0]}`" in line for names in form.needs), form


def test_every_field_is_explained(page: str) -> None:
    read = {*SYSTEMS, *HISTORIES, *ANSWERS, *ASKING, *CHOICES, *REASONING, *MARKS, "tools", "functions", "labels"}
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []
    assert [suffix for suffix in (*SUFFIXES, *COMPRESSED) if f"{suffix}`" not in page] == []


def test_every_option_is_explained(page: str) -> None:
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    options = fields | set(inspect.signature(prepare).parameters) - {"source", "tokenizer", "config", "progress"}
    assert [name for name in options if not re.search(rf"`{name}\b", page)] == []
