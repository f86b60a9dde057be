"""Which files of a folder are data, and their bytes, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from anyorder.errors import UserError

JSON = (".jsonl", ".ndjson", ".json")
TEXT = (".txt", ".text", ".md")
SHEETS = (".csv", ".tsv")
TABLES = (".parquet", ".arrow", ".feather")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
SUFFIXES = (*JSON, *TEXT, *SHEETS, *TABLES)

ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation|contributing|code_of_conduct|security|authors|"
    r"requirements)(?![a-z]).*\.(md|txt|text)|(dataset_infos?|dataset_dict|state|dataset-metadata|croissant)\.json"
)
"""Names (in lower case) of files about the data."""

DATASETS_STATE, DATASETS_CACHE = "state.json", "cache-*.arrow"
"""What the library `datasets` writes beside its rows: which files they are in, and results of functions on them."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Words in the names of files and folders that say for what the data are."""


@dataclass(frozen=True)
class Found:
    """Files of a folder.

    Attributes:
        files: those that are read, in order of name.
        passed_over: the others, each with the reason; hidden files are not among them.
    """

    files: list[Path]
    passed_over: list[str] = field(default_factory=list)


def files_of(source: str | Path) -> list[Path]:
    """Return the files that `find` finds."""
    return find(source).files


def find(source: str | Path) -> Found:
    """Return the file, or the files of a folder and the folders within it, that can be read, in order of name.

    Hidden files, those about the data (cards, licences) and those of other kinds are none of them. Where some are of
    the train split, those of the test and validation splits are none of them either.

    Raises:
        UserError: there are none.
    """
    path = Path(source)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # such as a name that is too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"data {str(path)!r} cannot be read ({reason}): check the path.") from None
    if is_folder:
        return _find_in(path)
    if not is_there:
        raise UserError(f"data {str(path)!r} is no file or folder here: check the path.")
    if kind_of(path) not in SUFFIXES:
        raise UserError(f"data {str(path)!r} is of no kind that is known: give a file that ends in {_endings()}.")
    return Found([path])


def kind_of(file: Path) -> str:
    """Return the ending of a file's name that says what is in it, without that of a compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_bytes(file: Path) -> IO[bytes]:
    """Return the bytes of a file, unpacked while they are read."""
    match file.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(file))
        case ".bz2":
            return cast("IO[bytes]", bz2.open(file))
        case ".xz":
            return cast("IO[bytes]", lzma.open(file))
        case ".zst" | ".lz4" as suffix:
            codec = {".zst": "zstd", ".lz4": "lz4"}[suffix]
            return io.BufferedReader(import_arrow("compressed files").input_stream(str(file), compression=codec))
    return file.open("rb")


def import_arrow(what: str) -> Any:
    """Import PyArrow.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} need the package {error.name}, which is not installed: pip install 'anyorder[train]'."
        ) from error
    return pyarrow


def is_lfs_pointer(file: Path) -> bool:
    """Return whether a file holds the place of one that Git LFS has not fetched."""
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def _endings() -> str:
    return f"{', '.join(SUFFIXES)} (of which text may be compressed: {', '.join(COMPRESSED)})"


def _find_in(folder: Path) -> Found:
    # A link to nothing is neither a file nor a folder.
    everything = sorted(
        (file.relative_to(folder).parts, is_file)
        for file in folder.rglob("*")
        if (is_file := file.is_file()) or (file.is_symlink() and not file.exists())
    )
    visible = {
        Path(*parts): is_file for parts, is_file in everything if not any(part.startswith(".") for part in parts)
    }
    rows = _rows_of_datasets(folder, visible)
    data: list[Path] = []
    passed_over: list[str] = []

    def decide(names: Iterable[Path], reason_against: Callable[[Path], str | None]) -> list[Path]:
        kept = []
        for name in names:
            if (reason := reason_against(name)) is None:
                kept.append(name)
            else:
                passed_over.append(f"{str(folder / name)!r}: {reason}")
        return kept

    data = decide(visible, lambda name: _no_data(name, rows) if visible[name] else "a link to nothing")
    if "train" in {_split(name) for name in data}:
        splits = {name: _split(name) for name in data}
        data = decide(
            data, lambda name: f"the {splits[name]} split" if splits[name] in ("validation", "test") else None
        )
    if not data:
        others = f"; passed over: {'; '.join(passed_over[:3])}" if passed_over else ""
        raise UserError(f"folder {str(folder)!r} has no data: put files into it that end in {_endings()}{others}.")
    return Found([folder / name for name in data], sorted(passed_over))


def _no_data(name: Path, rows: dict[Path, set[str]]) -> str | None:
    """Return why a file is no data."""
    if ABOUT.fullmatch(name.name.lower()):
        return "about the data"
    if name.match(DATASETS_CACHE) or (name.suffix == ".arrow" and name.name not in rows.get(name.parent, {name.name})):
        return "not among the rows that the library datasets lists"
    if kind_of(name) not in SUFFIXES:
        return "of no kind that is read"
    return None


def _rows_of_datasets(folder: Path, names: Iterable[Path]) -> dict[Path, set[str]]:
    """Return the files with rows of each folder that `save_to_disk` wrote."""
    rows: dict[Path, set[str]] = {}
    for name in names:
        if name.name != DATASETS_STATE:
            continue
        try:
            state = json.loads((folder / name).read_text(encoding="utf-8"))
            rows[name.parent] = {file["filename"] for file in state["_data_files"]}
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue  # something else of that name
    return rows


def _split(name: Path) -> str | None:
    """Return the split that the name of a file, or of a folder that it is in, says."""
    words = {word for part in reversed(name.parts) for word in re.split(r"[^a-z]+", part.lower())}
    return next((split for split, names in SPLITS.items() if words & set(names)), None)
