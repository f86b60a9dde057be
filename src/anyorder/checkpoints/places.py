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


def refuse_gguf(path: Path) -> None:
    """Refuse a GGUF file where transformers is to read a folder.

    Raises:
        UserError: it is one.
    """
    if path.suffix.lower() == ".gguf" and is_file(path):
        remedy = "load it with anyorder.load, or convert it into a folder first (anyorder convert)"
        raise UserError(f"checkpoint {str(path)!r} is a GGUF file: {remedy}.")


NETWORK = "network"
"""Where earlier versions put the network in the output folder of its training, which now is the network's own."""


def network_folder(path: Path) -> Path:
    """Return the folder of the network: `path`, or the one within the output of a training by an earlier version."""
    older = not is_file(path / "config.json") and is_file(path / NETWORK / "config.json")
    return path / NETWORK if older else path
