"""Files that are said to hold a trace: each is replayed, or refused in one sentence, in bounded time."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from anyorder.cli import main
from anyorder.decoding.trace import Trace, Written
from anyorder.errors import UserError
from anyorder.inspection.replay import Recording

EVENTS = tuple(Written(step, row, 3 + step, 5 + step, -0.5) for row in range(2) for step in range(4))
RECORD: dict[str, Any] = json.loads(
    Recording(
        trace=Trace(EVENTS, passes=4, seconds=0.5, end_token_ids=(2,), drafted=3, accepted=1),
        canvases=((1, 2, 3), (1, -1, 3)),
        pieces={1: "a", 2: " b"},
    ).to_json()
)

JUNK: list[Any] = [
    float("inf"), -float("inf"), float("nan"), -1, -(2**70), 2**31, 2**63, 10**9, 10**30, 1e300, 1.5, True, None, "1",
    "", "\ud800", "\x1b[2J", "[/x]", [], [[]], {}, {"a": [1]}, [1, 2, 3], [0, 0, 0, 0, float("nan")],
    [10**7, 0, 0, 0, 0.0],
]  # fmt: skip


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in JSON data."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, item in inside for path in paths(item, (*here, key)))][0 if here else 1 :]


def mutated(source: random.Random) -> str:
    """The record with one to three places replaced, removed, repeated or nested."""
    record = copy.deepcopy(RECORD)
    for _ in range(source.randint(1, 3)):
        *above, key = source.choice(paths(record))
        place = record
        for step in above:
            place = place[step]
        match source.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, list):
                place.insert(key, copy.deepcopy(place[key]))
            case 2:
                place[key] = [place[key]]
            case _:
                place[key] = copy.deepcopy(source.choice(JUNK))
    text = json.dumps(record)
    return text[: source.randrange(len(text))] if source.random() < 0.05 else text


def replay(file: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code of both replays, of which a mistake is one line."""
    page = file.with_suffix(".html")
    page.unlink(missing_ok=True)
    for words in ([], ["--html", str(page)]):
        began = time.process_time()
        code = main(["inspect", "replay", str(file), *words])
        said = capsys.readouterr().err
        assert time.process_time() - began < 5
        assert code == 0 or (code == 2 and said.startswith("error: ") and said.count("\n") == 1), said
        assert page.exists() == (code == 0 and bool(words))
    return code


def fuzz(folder: Path, capsys: pytest.CaptureFixture[str], count: int, seed: int) -> None:
    source = random.Random(seed)
    codes: set[int] = set()
    from anyorder.cli import _canvas  # noqa: F401  (so that importing is not timed)

    for _ in range(count):
        file = folder / "trace.json"
        file.write_text(mutated(source))
        codes.add(replay(file, capsys))
    assert codes == {0, 2}


def test_damaged_traces_are_replayed_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(tmp_path, capsys, 200, seed=1)


@pytest.mark.slow
def test_many_damaged_traces_are_replayed_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(tmp_path, capsys, 5000, seed=2)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ([0, 0, 3, 5, float("inf")], "inf is no finite number"),
        ([0, 0, 3, 5, float("nan")], "nan is no finite number"),
        ([0, 0, 3, 5, "-1"], "'-1' is no finite number"),
        ([0, 0, -3, 5, 0.0], "-3 is no whole number"),
        ([0, 0, 10**30, 5, 0.0], "10+ is no whole number"),
        ([0, 0, float("inf"), 5, 0.0], "inf is no whole number"),
        ([0, 0, 3.5, 5, 0.0], "3.5 is no whole number"),
        ([True, 0, 3, 5, 0.0], "True is no whole number"),
        ([0, 0, [3], 5, 0.0], r"\[3\] is no whole number"),
        ([10**9, 0, 3, 5, 0.0], "it has 1000000001 steps"),
        ([0, 0, 3, 5], "not enough values"),
        ("01234", "'01234' is no event"),
        (None, "None is no event"),
    ],
)
def test_what_is_no_event(event: Any, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^the text is no trace \(.*{reason}.*\): give what Trace\.to_json wrote\.$"):
        Trace.from_json(json.dumps(RECORD | {"events": [event]}))


@pytest.mark.parametrize(
    "fields",
    [
        {"canvases": 3}, {"canvases": [3]}, {"canvases": [[1.5]]}, {"canvases": [["1"]]}, {"canvases": [[-2]]},
        {"canvases": [[10**30]]}, {"pieces": [1]}, {"pieces": {"a": "b"}}, {"pieces": {"1": 3}},
        {"pieces": {"1": "\ud800"}},
    ],
)  # fmt: skip
def test_what_is_no_recording(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^the text is no recording \(.*\): give what `anyorder generate --trace`"):
        Recording.from_json(json.dumps(RECORD | fields))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "NaN", "null", '"x"', '{"fields": 3}'])
def test_text_that_is_no_trace(text: str) -> None:
    with pytest.raises(UserError, match="the text is no trace"):
        Trace.from_json(text)


def test_long_traces_take_time_in_proportion() -> None:
    """Steps without a token cost nothing, and texts are not gone through once for each other text."""
    sparse = Trace((Written(0, 0, 0, 1, -0.1), Written(10**6 - 1, 0, 1, 1, -0.1)), 10**6, 1.0)
    many = Trace(tuple(Written(0, row, 0, 1, -0.1) for row in range(20_000)), 1, 1.0)
    began = time.process_time()
    assert sum(1 for _ in Recording.from_json(sparse.to_json()).states(0)) == 10**6 + 1
    assert len(Recording(trace=many).page()) > 20_000
    assert time.process_time() - began < 5


def test_a_title_that_is_no_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace\udcff.json"
    file.write_text(json.dumps(RECORD))
    assert main(["inspect", "replay", str(file), "--html", str(tmp_path / "page.html")]) == 0
