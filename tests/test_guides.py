"""The guides cannot go stale: their code prints what they show, and the names they mention exist."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import runpy
from pathlib import Path

import pytest

import anyorder
from anyorder import DiffusionSampler, visibility
from anyorder.attention import BACKENDS, TRANSFORMERS_NAMES
from anyorder.cli import command_names, command_of
from anyorder.cli._order_options import chosen_order
from anyorder.cli._parser import options
from anyorder.decoding.diffusion.sampler import PRESETS
from anyorder.decoding.fusion.layout import POSITIONS
from anyorder.decoding.fusion.question import METHODS
from anyorder.decoding.fusion.weighting import CORRECTIONS
from anyorder.orders.names import NAMES

PAGES = sorted(page.name for page in (Path(__file__).parent.parent / "docs").glob("*.md"))

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<printed>.*?)```\n)?", re.DOTALL)


@pytest.fixture
def page(project_root: Path) -> str:
    return (project_root / "docs" / "visibility.md").read_text(encoding="utf-8")


def prints_what_it_shows(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each block runs in the current folder, after those before it, and prints what stands below it."""
    names: dict[str, object] = {}
    script = Path("block.py")
    blocks = list(BLOCK.finditer(page))
    assert len(blocks) == page.count("```python")
    for block in blocks:
        script.write_text(block["code"], encoding="utf-8")
        names = runpy.run_path(str(script), init_globals=names)
        assert capsys.readouterr().out == (block["printed"] or ""), f"printed by\n{block['code']}"


def test_every_block_prints_what_stands_below_it(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prints_what_it_shows(page, capsys)


def test_every_block_of_left_to_right_prints_what_stands_below_it(
    project_root: Path, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = shared_data / "stories260K"
    monkeypatch.chdir(tmp_path)
    anyorder.convert(source / "stories260K.bin", "stories260K", tokenizer=source / "tok512.bin")
    prints_what_it_shows((project_root / "docs" / "left-to-right.md").read_text(encoding="utf-8"), capsys)


def test_every_block_of_fusion_prints_what_stands_below_it(
    project_root: Path, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = shared_data / "stories260K"
    monkeypatch.chdir(tmp_path)
    anyorder.convert(source / "stories260K.bin", "stories260K", tokenizer=source / "tok512.bin")
    prints_what_it_shows((project_root / "docs" / "fusion.md").read_text(encoding="utf-8"), capsys)


def test_fusion_names_every_option_and_method(project_root: Path) -> None:
    page = (project_root / "docs" / "fusion.md").read_text(encoding="utf-8")
    for function in (anyorder.fuse, anyorder.stream_fused):
        for name in set(inspect.signature(function).parameters) - {"model", "tokenizer"}:
            assert re.search(rf"`{name}\b", page), name
    command = importlib.import_module("anyorder.cli.fuse").command
    for name in set(inspect.signature(command).parameters) - {"model", "phrasings"}:
        assert f"`--{name}" in page, name
    for name in (*METHODS, *POSITIONS, *CORRECTIONS):
        assert f'| `"{name}"` |' in page, name


def test_every_block_of_fusion_evaluation_prints_what_stands_below_it(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prints_what_it_shows((project_root / "docs" / "fusion-evaluation.md").read_text(encoding="utf-8"), capsys)


def test_every_block_of_diffusion_prints_what_stands_below_it(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prints_what_it_shows((project_root / "docs" / "diffusion.md").read_text(encoding="utf-8"), capsys)


def test_every_block_of_any_order_prints_what_stands_below_it(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prints_what_it_shows((project_root / "docs" / "any-order.md").read_text(encoding="utf-8"), capsys)


def test_any_order_names_every_order(project_root: Path) -> None:
    page = (project_root / "docs" / "any-order.md").read_text(encoding="utf-8")
    for name, (_, field) in NAMES.items():
        assert re.search(rf"`\"{name}(:\d)?\"`", page), name
        assert field is None or re.search(rf"`\"{name}:\d\"`", page), name


def test_the_block_of_training_prints_what_stands_below_it(
    project_root: Path, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    text = (shared_data / "tinystories" / "tinystories_lowercased_4M.txt").read_text(encoding="utf-8")
    Path("stories.txt").write_text(text[:20_000], encoding="utf-8")
    prints_what_it_shows((project_root / "docs" / "training.md").read_text(encoding="utf-8"), capsys)


def test_diffusion_names_every_field_and_preset(project_root: Path) -> None:
    page = (project_root / "docs" / "diffusion.md").read_text(encoding="utf-8")
    fields = [field.name for field in dataclasses.fields(DiffusionSampler)]
    options = set(inspect.signature(chosen_order).parameters)
    assert [name for name in fields if f"| `{name}=" not in page] == []
    assert [name for name in PRESETS if f"| `{name}` |" not in page] == []
    assert [name for name in options if f"`--{name}" not in page] == []


def test_left_to_right_names_every_option(project_root: Path) -> None:
    page = (project_root / "docs" / "left-to-right.md").read_text(encoding="utf-8")
    for function in (anyorder.generate, anyorder.stream):
        for name in set(inspect.signature(function).parameters) - {"model", "tokenizer"}:
            assert re.search(rf"`{name}\b", page), name
    command = importlib.import_module("anyorder.cli.generate").command
    for name in set(inspect.signature(command).parameters) - {"model", "prompt"}:
        assert f"`--{name}" in page, name
    for name in re.findall(r"--(\w+)", page):
        assert name in {*inspect.signature(command).parameters, "config"}, name


def test_every_named_visibility_is_drawn(page: str) -> None:
    drawn = "".join(block["code"] for block in BLOCK.finditer(page))
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
        assert set(re.findall(r"--(\w+)", words)) <= options(command_of(command)), words
    assert lines or "coming-from" not in name
