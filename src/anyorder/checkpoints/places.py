"""Which files and folders are there, where the name may be one that none can have: too long, or with NUL in it."""

from __future__ import annotations

from pathlib import Path

from anyorder.errors import UserError


def is_file(path: Path) -> bool:
    """Return whether there is such a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def refuse_gguf(path: Path, what: str) -> None:
    """Refuse a GGUF file; `what` is the word for it, such as "checkpoint".

    Raises:
        UserError: it is one.
    """
    if path.suffix.lower() == ".gguf" and is_file(path):
        remedy = "give the folder or file that it was made from"
        raise UserError(f"{what} {str(path)!r} is a GGUF file, which is written and not read: {remedy}.")


NETWORK = "network"
"""Where earlier versions put the network in the output folder of its training, which now is the network's own."""


def network_folder(path: Path) -> Path:
    """Return the folder of the network: `path`, or the one within the output of a training by an earlier version."""
    older = not is_file(path / "config.json") and is_file(path / NETWORK / "config.json")
    return path / NETWORK if older else path
