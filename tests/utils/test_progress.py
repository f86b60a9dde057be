"""The number of finished texts, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from anyorder.utils import progress
from anyorder.utils.progress import TextProgress


def test_a_bar_counts_texts_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = io.StringIO()
    with TextProgress(600, Console(file=file, force_terminal=True, width=80)) as bar:
        bar.advance(120, 1000)
        bar.advance(3, 20)
        with bar.aside():
            file.write("|between|")
        assert "123/600 texts" in file.getvalue()
        assert "1020 tokens" in file.getvalue()
    before, after = re.sub(r"\x1b\[[0-9;?]*m", "", file.getvalue()).split("|between|")
    assert before.endswith("\x1b[2K")  # the bar is cleared before something else is printed
    assert after.endswith("\x1b[2K")


def test_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    file = io.StringIO()
    with TextProgress(600, Console(file=file)) as bar:
        for second in range(35):
            now = float(second)
            bar.advance(5, 50)
    assert file.getvalue().splitlines() == [
        "55/600 texts, 550 tokens in 10 s",
        "105/600 texts, 1050 tokens in 20 s",
        "155/600 texts, 1550 tokens in 30 s",
    ]
