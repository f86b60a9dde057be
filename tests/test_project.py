"""What the project promises about itself: public names, dependencies, and a README that is true."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import shlex
import tomllib
from importlib.metadata import requires, version
from itertools import chain
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.mask_token import with_mask_token
from anyorder.cli import main
from anyorder.data import train_tokenizer
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion

MODULES = [module.name for module in pkgutil.walk_packages(anyorder.__path__, "anyorder.")]


def blocks(project_root: Path, language: str) -> list[str]:
    """The code blocks of the README in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (project_root / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture
def beside_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig) -> Path:
    """A working directory with a network in `demo/`, as `make demo` leaves it, and one of several modes."""
    tokenizer = train_tokenizer(["The text of a demo."], 300)
    torch.manual_seed(0)
    config = tiny_config.replace(vocab_size=len(tokenizer), max_position_embeddings=128)
    monkeypatch.chdir(tmp_path)
    anyorder.save(Llama(config), tokenizer, "demo")
    model, mask_token_id = with_mask_token(Llama(config), tokenizer, "<|mask|>")
    anyorder.save(adapt(model, (LEFT_TO_RIGHT, ANY_ORDER, diffusion(mask_token_id))), tokenizer, "trained")
    return tmp_path


@pytest.mark.parametrize("module", MODULES)
def test_names_of_all_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", ()):
        assert hasattr(loaded, name), f"{module}.__all__ names {name}"


@pytest.mark.parametrize("name", anyorder.__all__)
def test_public_names_are_documented(name: str) -> None:
    assert name in dir(anyorder)
    assert getattr(anyorder, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(anyorder, "nothing")  # noqa: B009


def test_versions_agree(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    assert project["version"] == anyorder.__version__ == version("anyorder")


def test_all_extras_are_in_all(project_root: Path) -> None:
    extras = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [everything] = extras.pop("all")
    extras.pop("bench")  # compiled for minutes, for one column of a table
    assert everything == f"anyorder[{','.join(extras)}]"


def locked(project_root: Path) -> dict[str, list[Requirement]]:
    """The lines of the lock by the name of their package; a package has several where Pythons need several releases."""
    lines = (project_root / "requirements.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        name: list(those)
        for name, those in itertools.groupby(requirements, lambda requirement: canonicalize_name(requirement.name))
    }


def test_lock_pins_everything_that_is_installed(project_root: Path) -> None:
    lock = locked(project_root)
    assert all(len(list(line.specifier)) == 1 for lines in lock.values() for line in lines)
    assert all(str(line.specifier).startswith("==") for lines in lock.values() for line in lines)
    assert [str(line) for line in lock["torch"]] == ["torch==2.13.0"]
    seen: set[tuple[str, str]] = set()
    waiting = [("anyorder", "all")]
    while waiting:
        name, extra = waiting.pop()
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            assert needed in {*lock, "anyorder"}, f"{name} needs {requirement}: run `make lock`"
            waiting += {(needed, part) for part in (*requirement.extras, "")} - seen
            seen |= {(needed, part) for part in (*requirement.extras, "")}
    assert len(seen) > 100


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_has_one_release_of_each_package_for_each_python(project_root: Path, python: str) -> None:
    system = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": "x86_64"}
    for name, lines in locked(project_root).items():
        fitting = [line for line in lines if line.marker is None or line.marker.evaluate(system)]
        assert len(fitting) <= 1, name
        if name in ("torch", "transformers", "numpy", "scipy"):
            assert len(fitting) == 1, name


def test_ranges_end_and_hold_the_locked_release(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranges = [Requirement(text) for text in chain(project["dependencies"], *extras.values())]
    lock = locked(project_root)
    for requirement in ranges:
        if requirement.name == "anyorder":
            continue
        assert {part.operator for part in requirement.specifier} == {">=", "<"}, requirement
        for line in lock[canonicalize_name(requirement.name)]:
            [pinned] = line.specifier
            assert requirement.specifier.contains(pinned.version), (requirement, pinned)


def test_python_of_the_readme_runs(project_root: Path, beside_a_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for code in blocks(project_root, "python"):
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert "tokens in" in capsys.readouterr().out


def test_commands_of_the_readme_run(
    project_root: Path, beside_a_demo: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stories260K.bin", "tok512.bin"):
        (beside_a_demo / name).symlink_to(shared_data / "stories260K" / name)
    lines = [line for block in blocks(project_root, "console") for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        prompt, program, *words = shlex.split(line)
        assert (prompt, program) == ("$", "anyorder")
        assert main(words) == 0, capsys.readouterr().err


def test_links_of_the_readme_lead_somewhere(project_root: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (project_root / "README.md").read_text()):
        assert (project_root / target).is_file(), target


def test_no_page_is_unfinished(project_root: Path) -> None:
    for page in (project_root / "README.md", *(project_root / "docs").glob("*.md")):
        assert not re.search(r"^(TABLE|TODO|FIXME)", page.read_text(), flags=re.MULTILINE), page
