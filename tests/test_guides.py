"""The guides cannot go stale: their code prints what they show, and the names they mention exist."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import anyorder
from anyorder import DiffusionSampler, visibility
from anyorder.attention import BACKENDS, TRANSFORMERS_NAMES
from anyorder.cli import command_names, command_of
from anyorder.cli._options import DiffusionOptions
from anyorder.cli._signature import parameters_of
from anyorder.decoding.diffusion.sampler import PRESETS
from anyorder.decoding.fusion.layout import POSITIONS
from anyorder.decoding.fusion.method import METHODS
from anyorder.decoding.fusion.weighting import CORRECTIONS
from anyorder.orders.names import NAMES
from tests.modes.table import own_modes
from tests.pages import Reader, blocks_of

PAGES = sorted(page.name for page in (Path(__file__).parent.parent / "docs").glob("*.md"))

NEEDS_COMMANDS = ("evaluation.md", "hardware.md", "inspection.md", "tutorial.md")
"""Pages whose code reads what their commands leave."""


@pytest.fixture
def page(project_root: Path) -> str:
    return (project_root / "docs" / "visibility.md").read_text(encoding="utf-8")


@pytest.fixture
def reader(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """In an empty folder."""
    reader = Reader(tmp_path, shared_data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(reader.cache))
    with own_modes():
        yield reader


@pytest.mark.parametrize("name", [name for name in PAGES if name not in NEEDS_COMMANDS])
def test_python_prints_what_stands_below_it(name: str, project_root: Path, reader: Reader) -> None:
    text = (project_root / "docs" / name).read_text(encoding="utf-8")
    blocks = [block for block in blocks_of(text) if block.language == "python"]
    assert len(blocks) == text.count("```python")
    if blocks:
        reader.bring(text)
    for block in blocks:
        assert reader.run(block) == (block.printed or ""), f"printed by\n{block.code}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_every_block_runs_after_those_before_it(name: str, project_root: Path, reader: Reader) -> None:
    text = (project_root / "docs" / name).read_text(encoding="utf-8")
    reader.bring(text)
    for block in blocks_of(text):
        printed = reader.run(block)
        if block.language == "python":
            assert printed == (block.printed or ""), f"printed by\n{block.code}"


@pytest.mark.slow
def test_the_readme_teaches_the_network_words(project_root: Path, reader: Reader) -> None:
    """Each block runs, and what it leaves is good enough for those after it."""
    text = (project_root / "README.md").read_text(encoding="utf-8")
    reader.bring(text)
    blocks = blocks_of(text)
    assert {block.language for block in blocks} == {"sh", "console", "python"}
    printed = {block.language: reader.run(block) for block in blocks}
    log = json.loads(Path("trained", "log.json").read_text(encoding="utf-8"))["log"]
    assert [entry["loss"] for entry in log if "loss" in entry][-1] < math.log(2048) - 2
    known = set(re.findall(r"[a-z]{3,}", Path("demo", "texts.txt").read_text(encoding="utf-8")))
    written = re.findall(r"[a-z]{3,}", printed["python"])  # by the last block
    assert len(written) >= 3
    assert sum(word in known for word in written) > len(written) / 2


def test_measurements_are_there(project_root: Path) -> None:
    """Those that are not run are scripts with the options that pages give them."""
    for name in PAGES:
        text = (project_root / "docs" / name).read_text(encoding="utf-8")
        for script, words in re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)", text):
            source = (project_root / script).read_text(encoding="utf-8")
            options = re.findall(r"--([\w-]+)", words)
            named = [name for name in options if f'"--{name}"' in source or f'("{name}", ' in source]
            assert named == options, words


def test_fusion_names_every_option_and_method(project_root: Path) -> None:
    page = (project_root / "docs" / "fusion.md").read_text(encoding="utf-8")
    for function in (anyorder.fuse, anyorder.stream_fused):
        for name in set(inspect.signature(function).parameters) - {"model", "tokenizer"}:
            assert re.search(rf"`{name}\b", page), name
    for name in set(parameters_of(command_of("fuse"))) - {"model", "phrasings"}:
        assert f"`--{name}" in page, name
    for name in (*METHODS, *POSITIONS, *CORRECTIONS):
        assert f'| `"{name}"` |' in page, name


def test_any_order_names_every_order(project_root: Path) -> None:
    page = (project_root / "docs" / "any-order.md").read_text(encoding="utf-8")
    for name, field in NAMES.items():
        assert re.search(rf"`\"{name}(:\d)?\"`", page), name
        assert field is None or re.search(rf"`\"{name}:\d\"`", page), name


def test_diffusion_names_every_field_and_preset(project_root: Path) -> None:
    page = (project_root / "docs" / "diffusion.md").read_text(encoding="utf-8")
    fields = [field.name for field in dataclasses.fields(DiffusionSampler)]
    options = {*inspect.signature(DiffusionOptions).parameters, "order", "temperature", "top_k", "top_p"}
    assert [name for name in fields if f"| `{name}=" not in page] == []
    assert [name for name in PRESETS if f"| `{name}` |" not in page] == []
    assert [name for name in options if f"`--{name}" not in page] == []


def test_left_to_right_names_every_option(project_root: Path) -> None:
    page = (project_root / "docs" / "left-to-right.md").read_text(encoding="utf-8")
    for function in (anyorder.generate, anyorder.stream):
        for name in set(inspect.signature(function).parameters) - {"model", "tokenizer"}:
            assert re.search(rf"`{name}\b", page), name
    options = parameters_of(command_of("generate"))
    for name in set(options) - {"model", "prompt"}:
        assert f"`--{name}" in page, name
    for name in re.findall(r"--(\w+)", page):
        assert name in {*options, "config"}, name


def test_every_named_visibility_is_drawn(page: str) -> None:
    drawn = "".join(block.code for block in blocks_of(page))
    named = [
        name
        for name, function in vars(visibility).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and inspect.signature(function).return_annotation == "Visibility"
    ]
    assert {"causal", "groups", "key_is"} <= set(named)
    assert [name for name in named if f"{name}(" not in page] == []
    relations = {"before", "same", "not_after", "key_is", "query_is", "chance"}
    assert [name for name in set(named) - relations if f"{name}(" not in drawn] == []


def test_every_backend_has_its_line(page: str) -> None:
    for theirs, ours in TRANSFORMERS_NAMES.items():
        assert re.search(rf"^\| `{ours}`.*\| `{theirs}` \|", page, re.MULTILINE)
    assert set(TRANSFORMERS_NAMES.values()) <= set(BACKENDS)


@pytest.mark.parametrize("name", PAGES)
def test_names_and_links_exist(name: str, project_root: Path) -> None:
    text = (project_root / "docs" / name).read_text(encoding="utf-8")
    for dotted in sorted(set(re.findall(r"`(anyorder(?:\.\w+)+)", text))):
        parts = dotted.split(".")
        found: object = importlib.import_module("anyorder")
        for end, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part):
                found = importlib.import_module(".".join(parts[:end]))
            else:
                found = getattr(found, part)
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (project_root / "docs" / link).is_file(), link


@pytest.mark.parametrize("name", PAGES)
def test_options_of_commands_exist(name: str, project_root: Path) -> None:
    text = (project_root / "docs" / name).read_text(encoding="utf-8")
    names = sorted(command_names(), key=len, reverse=True)  # "data convert" before "data"
    lines = re.findall(rf"anyorder ({'|'.join(names)})\b([^`\n]*)", text)
    for command, words in lines:
        assert set(re.findall(r"--(\w+)", words)) <= {"config", *parameters_of(command_of(command))}, words
    assert lines or "coming-from" not in name
