"""The page about the likelihood of masked diffusion prints what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_guides import prints_what_it_shows


def test_every_block_prints_what_stands_below_it(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (project_root / "docs" / "diffusion-likelihood.md").read_text(encoding="utf-8")
    prints_what_it_shows(page, capsys)
