"""The table of modes as it was, after a test that registers some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anyorder.model import modes as kinds
from anyorder.modes import ENTRIES


@contextmanager
def own_modes() -> Iterator[None]:
    """Within it modes may be registered, which are forgotten at its end."""
    tables: tuple[dict[str, Any], ...] = (kinds.KINDS, kinds._MODES, ENTRIES)
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
