"""Shared libraries that a killed linker left half written."""

from __future__ import annotations

import logging
import struct
import time
from pathlib import Path

logger = logging.getLogger(__name__)

LONGEST_LINK = 60
"""Seconds after which nobody is still writing a library that is not whole."""


def remove_torn_libraries(folder: Path) -> None:
    """Remove half-written libraries from the folders in this one: to load one can kill the process.

    A library of ELF, the format of Linux, ends with the table of its sections. Others are left alone.
    """
    for library in folder.glob("*/*.so"):
        try:
            status = library.stat()
            if time.time() - status.st_mtime < LONGEST_LINK:
                continue
            with library.open("rb") as file:
                header = file.read(64)
            if status.st_size < 64 or (header[:5] == b"\x7fELF\x02" and status.st_size < _elf_size(header)):
                library.unlink()
                logger.warning("removed %s, which a compilation that was killed left half written", library)
        except OSError:  # somebody else removed it, or it is not ours
            continue


def _elf_size(header: bytes) -> int:
    """Bytes that a library has at least: where the table of sections begins, and its length."""
    (begin,) = struct.unpack_from("<Q", header, 40)
    each, sections = struct.unpack_from("<HH", header, 58)
    return begin + each * sections
