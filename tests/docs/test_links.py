"""Every page of the docs can be reached from the index, and every link of docs and README leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def without_code(page: str) -> str:
    """A page without its blocks and spans of code, in which brackets are no links and `#` no headings."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL))


def links(page: str) -> list[str]:
    return [found["target"] for found in LINK.finditer(without_code(page))]


def anchors(page: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        number = seen.get(anchor, 0)
        seen[anchor] = number + 1
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def broken(source: Path, page: str) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = source if not path else (source.parent / path).resolve()
        missing = not file.is_file()
        if missing or (anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_and_anchors_resolve(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_broken_links_are_found() -> None:
    page = "[a](no.md) [b](models.md#no) [c](#no) [d](models.md#not-read) [e](#next) `[f](no.md)`\n"
    assert broken(ROOT / "docs" / "tutorial.md", page) == ["no.md", "models.md#no", "#no"]
    assert anchors("# A `b`: c\n## Next\n## Next\n```sh\n# no heading\n```\n") == {"a-b-c", "next", "next-1"}


def test_the_index_links_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {target.partition("#")[0] for target in links(index.read_text(encoding="utf-8"))}
    assert {page.name for page in PAGES} - {index.name} <= linked
