"""Make the texts that the network "stories" is trained on: `train.jsonl` and `valid.jsonl`.

Run: python prepare.py tinystories.txt drawn.jsonl FOLDER

`tinystories.txt` holds one story after the other, parted by a line's end, and paragraphs parted by an empty line;
`drawn.jsonl` is what `anyorder generate --json` wrote. Shape: one JSON object a line, with "text".
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

HELD_BACK = 150
"""Stories of TinyStories for validation, the last ones."""

MENDED = {"â€œ": '"', "â€™": "'", "â€˜": "'", "â€“": "-", "â€”": "-", "â€¦": "...", "â€": '"'}
"""Marks of the file whose UTF-8 was read as another encoding; the last is the rest of a closing quotation mark."""

SHORTEST = 300
"""Characters; shorter pieces are parts of a story."""


def real_stories(text: str) -> list[str]:
    """Stories, each with one line to a paragraph, and quotation marks that were read in the wrong encoding mended."""
    pieces = (re.sub(r"\n+", "\n", piece.strip()) for piece in re.split(r"(?<!\n)\n(?!\n)", _mended(text)))
    return [piece for piece in pieces if len(piece) >= SHORTEST]


def _mended(text: str) -> str:
    for wrong, right in MENDED.items():
        text = text.replace(wrong, right)
    return text


def drawn_stories(lines: Iterable[str]) -> list[str]:
    """The drawn stories that came to their end."""
    records = map(json.loads, lines)
    return [record["text"].strip() for record in records if record["stopped"] != "length"]


def main(arguments: Sequence[str]) -> None:
    """Write both files."""
    real_file, drawn_file, folder = map(Path, arguments)
    real = real_stories(real_file.read_text(encoding="utf-8"))
    with drawn_file.open(encoding="utf-8") as lines:
        drawn = drawn_stories(lines)
    for name, stories in (("train", real[:-HELD_BACK] + drawn), ("valid", real[-HELD_BACK:])):
        lines_ = "".join(json.dumps({"text": story}, ensure_ascii=False) + "\n" for story in stories)
        (folder / f"{name}.jsonl").write_text(lines_, encoding="utf-8")
    print(f"{len(real) - HELD_BACK} stories of TinyStories and {len(drawn)} drawn ones; {HELD_BACK} for validation")


if __name__ == "__main__":
    main(sys.argv[1:])
