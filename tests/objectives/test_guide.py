"""The page on objectives cannot go stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anyorder import objectives, orders


@pytest.fixture
def page(project_root: Path) -> str:
    return (project_root / "docs" / "objectives.md").read_text(encoding="utf-8")


def test_every_name_is_mentioned(page: str) -> None:
    general = {"Batch", "TrainingInputs", "Objective", "Schedule", "Times", "predictions"}
    assert [name for name in set(objectives.__all__) - general if name not in page] == []


def test_names_exist(page: str, project_root: Path) -> None:
    both = page + (project_root / "docs" / "coming-from.md").read_text(encoding="utf-8")
    known = {**vars(objectives), **vars(orders)}
    used = set(re.findall(r"\b(\w+)\((?:schedule|mask_token_id|strata|predicted|stages|steps=\.)", both))
    assert used
    assert [name for name in used if name not in known] == []
