"""Half-written libraries are removed, and nothing else."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from anyorder.utils.shared_libraries import remove_torn_libraries


def test_torn_libraries_are_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not those that are whole, nor those that somebody may be writing at this moment."""
    whole = Path(torch._C.__file__).read_bytes()
    contents = {"whole": whole, "torn": whole[: len(whole) // 2], "empty": b"", "other": b"MZ" + bytes(100)}
    for name, content in (contents | {"young": b""}).items():
        file = tmp_path / "ab" / f"{name}.so"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        if name != "young":
            os.utime(file, (0, 0))
    with caplog.at_level(logging.WARNING, logger="anyorder"):
        remove_torn_libraries(tmp_path)
    assert {file.stem for file in tmp_path.glob("*/*")} == {"whole", "other", "young"}
    assert f"removed {tmp_path / 'ab' / 'torn.so'}, which a compilation that was killed left half" in caplog.text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    remove_torn_libraries(tmp_path / "nothing")
