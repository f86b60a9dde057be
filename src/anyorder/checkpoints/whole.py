"""Output that appears whole or not at all: it is written beside its place, then renamed into it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anyorder.errors import UserError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `target` when the block ends well and is removed otherwise.

    Raises:
        UserError: `target` exists and is not an empty folder, or cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"output {str(target)!r} is a file: give a folder.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"output folder {str(target)!r} is not empty: give a new folder, or empty this one first.")
    with _beside(target) as partial:
        partial.mkdir()
        yield partial
        if target.is_dir():
            target.rmdir()  # not every system renames onto an empty folder
        partial.rename(target)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A file to write, which becomes `target` when the block ends well and is removed otherwise.

    Raises:
        UserError: `target` exists or cannot be written.
    """
    if target.exists():
        raise UserError(f"output file {str(target)!r} is there already: give a new name, or delete it first.")
    with _beside(target) as partial:
        yield partial
        partial.rename(target)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A fresh name in the folder of `target`, so that the renaming stays within one file system."""
    target = target.absolute()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"output {str(target)!r} cannot be written ({reason}): give another place.") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()
