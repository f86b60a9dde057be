"""A file of JSON lines that grows text by text, and that a later run with the same options resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from anyorder.cli._prompts import GivenPrompt
from anyorder.errors import UserError
from anyorder.utils.annotations import shown
from anyorder.utils.files import check_place, claimed, is_overwriting, whole_file
from anyorder.utils.json_text import json_text


@contextmanager
def kept(
    target: Path, settings: Mapping[str, Any], prompts: Iterator[GivenPrompt], samples: int
) -> Iterator[tuple[TextIO, int]]:
    """Provide a file for JSON lines, which becomes `target` when the block ends well, and the number of prompts whose
    texts it has already.

    Until then it is `target` + ".partial", beside the settings in `target` + ".partial.json". A line that was not
    written to its end, as when the process was killed, is removed, and so are the other texts of its prompt.

    Args:
        target: new file.
        settings: whatever the texts depend on, as JSON.
        prompts: in order; those whose texts are there are taken, and compared with them.
        samples: texts, and lines, of each prompt.

    Raises:
        UserError: the file is there already, or what there is of it is from other settings or prompts, or damaged; or
            another process writes it.
    """
    check_place(target, folder=False)
    partial, about = (target.with_name(f"{target.name}{ending}") for ending in (".partial", ".partial.json"))
    with claimed(target):
        if is_overwriting():
            partial.unlink(missing_ok=True)
        done = 0
        if partial.exists():
            _refuse_others(partial, about, json.loads(json_text(settings)))
            done = _compare(partial, prompts, samples)
        else:
            with whole_file(about, replace=True) as file:
                file.write_text(json_text(settings), encoding="utf-8")
        with partial.open("a", encoding="utf-8", newline="\n") as lines:
            yield lines, done
        partial.replace(target)
        about.unlink(missing_ok=True)


def _refuse_others(partial: Path, about: Path, settings: Mapping[str, Any]) -> None:
    """Refuse texts of a run with other settings; they stay as they are."""
    try:
        there = json.loads(about.read_bytes())
        names = [name for name in {**settings, **there} if settings.get(name) != there.get(name)]
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"{str(about)!r} is missing or damaged: delete {str(partial)!r}, which it describes.") from None
    if names:
        raise UserError(
            f"{str(partial)!r} holds texts of a run with {names[0]} {there.get(names[0])!r}, not "
            f"{settings.get(names[0])!r}: give another output, or the settings of that run."
        )


def _compare(partial: Path, prompts: Iterator[GivenPrompt], samples: int) -> int:
    """Return the number of prompts whose texts are all there; remove what follows those."""
    done = end = 0
    with partial.open("r+b") as file:
        while (lines := [file.readline() for _ in range(samples)])[-1].endswith(b"\n"):
            given = next(prompts, None)
            for number, line in enumerate(lines, start=done * samples + 1):
                _check(f"line {number} of {str(partial)!r}", line, given)
            done, end = done + 1, file.tell()
        file.truncate(end)
    return done


def _check(place: str, line: bytes, given: GivenPrompt | None) -> None:
    """Refuse a line that is no text of this prompt."""
    try:
        record = json.loads(line)
        prompt = record["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{place} is damaged: delete the file, and its texts are written again.") from None
    expected = {} if given is None else json.loads(json_text({**given.others, "prompt": given.prompt}))
    if given is None or any(record.get(name) != value for name, value in expected.items()):
        other = "there is no such prompt" if given is None else f"{given.place} has another one"
        raise UserError(
            f"{place} continues the prompt {shown(prompt)}, but {other}: give another output, or the prompts of that "
            "run."
        )
