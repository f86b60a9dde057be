"""The generated pages are current, and what they say of published checkpoints is so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import anyorder
from anyorder.checkpoints import vision_fields
from anyorder.checkpoints.architectures import ARCHITECTURES
from anyorder.checkpoints.config_json import config_from_json
from anyorder.checkpoints.masked_diffusion import FORMS, form_of
from anyorder.errors import UserError
from anyorder.inspection.head_sharing import parameter_count

DOCS = Path(__file__).resolve().parents[2] / "docs"
REMEDY = "run `make docs` (python docs/make_api.py, python docs/make_tables.py)"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES: Any = script("make_tables")
READ = [entry for entry in TABLES.PUBLISHED if entry["group"] != "no"]
REFUSED = [entry for entry in TABLES.PUBLISHED if entry["group"] == "no"]


def name_of(entry: dict[str, Any]) -> str:
    return str(entry["name"])


def test_the_api_page_is_current() -> None:
    page = script("make_api").page()
    assert page == (DOCS / "api.md").read_text(encoding="utf-8"), REMEDY
    for name in anyorder.__all__:
        assert f"\n## {name}\n" in page, name
    for name in ("Output", "Trace", "Stream", "LogProb"):
        assert f"\n### {name}\n" in page, name


@pytest.mark.parametrize("name", TABLES.PAGES)
def test_the_tables_are_current(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert TABLES.filled(page) == page, REMEDY
    assert TABLES.filled(page.replace("| ", "|  ")) != page.replace("| ", "|  ")


def test_each_table_stands_on_a_page() -> None:
    pages = "".join((DOCS / name).read_text(encoding="utf-8") for name in TABLES.PAGES)
    assert [name for name in TABLES.TABLES if f"<!-- table {name} -->" not in pages] == []


@pytest.mark.parametrize("entry", READ, ids=name_of)
def test_the_published_number_of_parameters(entry: dict[str, Any]) -> None:
    config = config_from_json(entry["config"])
    assert "parameters" not in entry or parameter_count(config) == entry["parameters"]
    assert any(mode.kind.diffuses for mode in config.modes) == (entry["group"] == "diffusion")


@pytest.mark.parametrize("entry", REFUSED, ids=name_of)
def test_what_is_not_read_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"(model_type|architectures) is "):
        config_from_json(entry["config"])


def test_every_architecture_and_form_is_on_the_page() -> None:
    assert {entry["config"]["model_type"] for entry in READ if form_of(entry["config"]) is None} == {
        vision_fields.MODEL_TYPE,
        *(architecture.model_type for architecture in ARCHITECTURES),
    }
    forms = [form for entry in READ if (form := form_of(entry["config"])) is not None]
    assert {form.name for form in forms} == {form.name for form in FORMS}


def test_the_sizes_that_people_know() -> None:
    rows = {row[0]: row[1:] for row in TABLES.writing()}
    assert rows["LLaDA 8B"][2] == "16"  # GB in bfloat16
    assert rows["Llama 3.3 70B"][2] == "141"
    assert rows["Llama 2 7B"][5] == "2.1"  # 0.5 MB a token
    fits = {row[0]: row[1:] for row in TABLES.fitting()}
    assert fits["LLaDA 8B"] == ("-", "int8", "bfloat16", "bfloat16", "bfloat16")
