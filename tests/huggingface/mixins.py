"""transformers' own tests of its models, from the source distribution of the installed version."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import transformers

PACKAGE = "transformers_tests"
"""The name under which they are imported."""

MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")
"""Of pytest, which they use."""

NOT_DISTRIBUTED = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
"""What `test_modeling_common` imports and source distributions leave out, as of 5.24."""


@functools.cache
def sources() -> Path:
    """The folder of the tests, fetched by pip once per version; skips the test where that fails."""
    folder = Path(tempfile.gettempdir()) / f"anyorder-{PACKAGE}-{transformers.__version__}"
    if not folder.exists():
        wanted = f"transformers=={transformers.__version__}"
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary=:all:", "--no-deps", wanted]
            fetched = subprocess.run([*command, "--dest", beside], capture_output=True, text=True)
            if fetched.returncode != 0:
                pytest.skip(f"the sources of {wanted} cannot be fetched: {fetched.stderr.strip()[-200:]}")
            (archive,) = Path(beside).glob("*.tar.gz")
            with tarfile.open(archive) as sdist:
                sdist.extractall(beside, filter="data")
            (unpacked,) = (path for path in Path(beside).iterdir() if path.is_dir())
            (unpacked / "tests").rename(folder)
    return folder


def mixins(*, generates: bool) -> list[type]:
    """transformers' `ModelTesterMixin`, and its `GenerationTesterMixin` for a class that generates."""
    pytest.importorskip("parameterized", reason="transformers' own tests need it")
    folder = sources()
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
        for path, name in NOT_DISTRIBUTED.items():
            if not (folder / (path.replace(".", "/") + ".py")).exists():
                module = types.ModuleType(f"{PACKAGE}.{path}")
                setattr(module, name, type(name, (), {}))
                sys.modules[f"{PACKAGE}.{path.partition('.')[0]}"] = types.ModuleType(path)
                sys.modules[module.__name__] = module
    found = [importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin]
    if generates:
        found.append(importlib.import_module(f"{PACKAGE}.generation.test_utils").GenerationTesterMixin)
    return found


class Result(unittest.TestResult):
    """Keeps the message of what failed, by the name of the test.

    Attributes:
        failed: names and tracebacks.
        passed: names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed: set[str] = set()
        self.failed: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed.add(_name(test))

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.failed[_name(test)] = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]

    addError = addFailure

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addFailure(test, err)


def _name(test: unittest.TestCase) -> str:
    return test.id().rpartition(".")[2]
