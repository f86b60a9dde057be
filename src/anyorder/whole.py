"""Output that appears whole or not at all: it is written beside its place, then renamed into it."""

from __future__ import annotations

import os
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
    check_place(target, folder=True)
    with _beside(target) as partial:
        partial.mkdir()
        yield partial
        if target.is_dir():
            target.rmdir()  # not every system renames onto an empty folder
        partial.rename(target)


@contextmanager
def whole_file(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A file to write, which becomes `target` when the block ends well and is removed otherwise.

    Args:
        target: the file.
        replace: whether it may exist already.

    Raises:
        UserError: `target` exists and is not to be replaced, or cannot be written.
    """
    if not replace:
        check_place(target, folder=False)
    with _beside(target) as partial:
        yield partial
        partial.rename(target)


def check_place(target: Path, *, folder: bool) -> None:
    """Whether a folder or a file can be written there, as far as can be told without writing.

    Raises:
        UserError: the place is taken, or cannot be written.
    """
    try:
        taken, is_folder = target.exists(), target.is_dir()
        filled = is_folder and any(target.iterdir())
        above = next(place for place in target.absolute().parents if place.exists())
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error
    if folder and taken and not is_folder:
        raise UserError(f"output {str(target)!r} is a file: give a folder.")
    if folder and filled:
        raise UserError(f"output folder {str(target)!r} is not empty: give a new folder, or empty this one first.")
    if not folder and taken:
        raise UserError(f"output file {str(target)!r} is there already: give a new name, or delete it first.")
    if not above.is_dir():
        raise _unwritable(target, f"{str(above)!r} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _unwritable(target, f"{str(above)!r} is not open for writing")


def _unwritable(target: Path, reason: str) -> UserError:
    return UserError(f"output {str(target)!r} cannot be written ({reason}): give another place.")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A fresh name in the folder of `target`, so that the renaming stays within one file system."""
    target = target.absolute()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()
