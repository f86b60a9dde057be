"""Output that appears whole or not at all: it is written beside its place, then renamed into it.

One process at a time writes to a place. While it does, it holds the lock `.NAME.lock` beside the place, and what it
has written so far is `.NAME.partial`. The system releases the lock of a process that was killed, so the holder of the
lock may remove what an earlier one has left.

A place that is taken is refused, except within `overwriting(True)`: then what is there stays until the new output is
whole, and is replaced by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from anyorder.errors import UserError

SEAL = "checksums.json"
"""In a sealed folder: the SHA-256 of each of its files."""


OURS = ("config.json", "tokenizer.json", "settings.json", "comparison.json", "pretrain-autoregressive.yaml", SEAL)
"""A folder with one of these was written by us or by our kind, and may be overwritten."""

_OVERWRITING: ContextVar[bool] = ContextVar("overwriting", default=False)


class BeingWrittenError(UserError):
    """Another process writes to this place."""


class TakenError(UserError):
    """Something is there already, which `overwriting(True)` would overwrite."""


class DiskError(UserError):
    """The system refuses to write.

    Attributes:
        what: begin of a sentence, such as "output 'x' cannot be written".
        reason: of the system, such as "No space left on device".
    """

    def __init__(self, what: str, reason: str, remedy: str) -> None:
        super().__init__(f"{what} ({reason}): {remedy}.")
        self.what = what
        self.reason = reason


@contextmanager
def overwriting(force: bool) -> Iterator[None]:
    """Within the block, outputs that are there already are overwritten if `force`."""
    token = _OVERWRITING.set(force)
    try:
        yield
    finally:
        _OVERWRITING.reset(token)


def is_overwriting() -> bool:
    """Return whether outputs that are there already are overwritten."""
    return _OVERWRITING.get()


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Provide a folder to write in, which becomes `target` when the block ends well and is removed otherwise.

    Raises:
        BeingWrittenError: another process writes to `target`.
        UserError: `target` exists and is not an empty folder, or cannot be written.
    """
    check_place(target, folder=True)
    with _beside(target) as partial:
        check_place(target, folder=True)  # another process may have finished before this one had the lock
        partial.mkdir()
        yield partial
        with _moved_away(target):
            partial.rename(target)


@contextmanager
def whole_file(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Provide a file to write, which becomes `target` when the block ends well and is removed otherwise.

    Args:
        target: the file.
        replace: whether it may exist already.

    Raises:
        BeingWrittenError: another process writes to `target`.
        UserError: `target` exists and is not to be replaced, or cannot be written.
    """
    if not replace:
        check_place(target, folder=False)
    with _beside(target) as partial:
        if not replace:
            check_place(target, folder=False)
        yield partial
        partial.rename(target)


@contextmanager
def growing_folder(target: Path, is_worth_keeping: Callable[[Path], bool]) -> Iterator[None]:
    """Protect an old folder while one is written that is of use before it is whole: within `overwriting(True)`, keep it
    beside the new one, and put it back if the block fails before that is worth keeping.

    Args:
        target: the folder, which the block makes.
        is_worth_keeping: called with the new folder if the block fails.

    Raises:
        UserError: `target` cannot be overwritten.
    """
    if not is_overwriting():
        yield
        return
    check_place(target, folder=True)
    with _moved_away(target):
        try:
            yield
        except BaseException:
            if target.is_dir() and is_worth_keeping(target):
                _remove(_old(target))
            raise


@contextmanager
def _moved_away(target: Path) -> Iterator[None]:
    """Move aside what is at a place; remove it when the block ends well, and put it back otherwise."""
    old = _old(target)
    if old.exists() and not target.exists():
        old.rename(target)  # of a process that was killed in between
    _remove(old)
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        target.rmdir()  # not every system renames onto an empty folder
    elif target.exists():
        target.rename(old)
    try:
        yield
    except BaseException:
        if old.exists():
            _remove(target)
            old.rename(target)
        raise
    _remove(old)


def _old(target: Path) -> Path:
    target = target.absolute()
    return target.with_name(f".{target.name}.old")


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Keep a place, which need not exist, from other processes that claim it or write to it.

    Raises:
        BeingWrittenError: another process has claimed it.
        UserError: nothing can be written there.
    """
    target = target.absolute()
    made = [place for place in target.parents if not place.exists()]
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BeingWrittenError(
            f"output {str(target)!r} is being written by another process: wait until that has finished, or give "
            "another place."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise _unwritable(target, disk_error(error) or str(error)) from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held, so that no lock of another is removed
        lock.release()
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def check_place(target: Path, *, folder: bool) -> None:
    """Refuse a place where no folder or file can be written, as far as is known without writing.

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
    if folder and filled and not is_overwriting():
        raise TakenError(f"output folder {str(target)!r} is not empty: give a new folder, or empty this one first.")
    if folder and filled:
        _refuse_to_remove(target)
    if not folder and is_folder:
        raise UserError(f"output file {str(target)!r} is a folder: give the name of a file.")
    if not folder and taken and not is_overwriting():
        raise TakenError(f"output file {str(target)!r} is there already: give a new name, or delete it first.")
    if not above.is_dir():
        raise _unwritable(target, f"{str(above)!r} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _unwritable(target, f"{str(above)!r} is not open for writing")


def _refuse_to_remove(folder: Path) -> None:
    """Refuse to overwrite a folder that holds a person's work rather than an output."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"output folder {str(folder)!r} is the one where this runs, or above it: give another folder.")
    if (folder / ".git").exists() or not any((folder / name).is_file() for name in OURS):
        raise UserError(
            f"output folder {str(folder)!r} holds something else than an output of anyorder, which --force does not "
            "overwrite: give a new folder, or delete it first."
        )


def disk_error(error: BaseException) -> str | None:
    """Return why the system refused to write, if an exception reports that; libraries in Rust and C++ raise their own.

    Returns:
        The reason, such as "No space left on device"; None for any other exception.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors, tokenizers
        return os.strerror(int(number[1]))
    if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):  # torch.save
        return "the file could not be written to its end"
    return None


def _unwritable(target: Path, reason: str) -> DiskError:
    return DiskError(f"output {str(target)!r} cannot be written", reason, "give another place")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Provide a free name in the folder of `target`, so that the renaming stays within one file system."""
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial")
    with claimed(target):
        try:
            _remove(partial)  # of a process that was killed
            yield partial
        except Exception as error:
            reason = disk_error(error)
            if reason is None:
                raise
            raise _unwritable(target, reason) from error
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- damage ----------------------------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Write the checksums of all files in a folder and below into the folder."""
    sums = {str(path.relative_to(folder)): _checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / SEAL).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Return what is wrong with a folder that `seal` has sealed, such as "rows.arrow has changed"; None if nothing is.

    Files that were added later do not count.
    """
    try:
        sums = json.loads((folder / SEAL).read_bytes())
        missing = [name for name in sums if not (folder / name).is_file()]
        changed = [name for name in sums if name not in missing and _checksum(folder / name) != sums[name]]
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (ValueError, TypeError, RecursionError):
        return f"{SEAL} has changed"
    except OSError as error:
        return f"{error.filename!r} cannot be read: {error.strerror}"
    found = [f"{name} is missing" for name in missing] + [f"{name} has changed" for name in changed]
    return found[0] if found else None


def added(folder: Path) -> list[str]:
    """Return the files in a folder and below that were added after `seal` had sealed it."""
    sums = json.loads((folder / SEAL).read_bytes())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return sorted(names - set(sums) - {SEAL})


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
