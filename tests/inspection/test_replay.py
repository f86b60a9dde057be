"""Recordings: what stood where after each step, for every mode, as data and as a page."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anyorder
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.trace import Trace, Written
from anyorder.errors import UserError
from anyorder.inspection.replay import NEVER, Place, Recording, token_pieces
from tests.writers import byte_tokenizer, chain, sentencepiece_tokenizer

ORDERLY = Trace((Written(0, 0, 2, 7, -0.1), Written(1, 0, 3, 8, -0.2)), passes=2, seconds=0.5, end_token_ids=(8,))
DIFFUSED = Trace(
    (
        Written(0, 0, 3, 7, -0.5), Written(0, 0, 1, 5, -0.7), Written(1, 0, 4, 6, -1.5), Written(1, 1, 0, 9, -0.1),
        Written(2, 0, 3, 4, -0.01),
    ),
    passes=3,
    seconds=0.5,
)  # fmt: skip


def ids(places: dict[int, Place]) -> list[int]:
    assert sorted(places) == list(range(len(places)))
    return [places[position].token_id for position in range(len(places))]


def test_a_text_from_left_to_right_grows() -> None:
    recording = Recording.of(ORDERLY, [[1, 2, 7, 8]])
    assert recording.canvases == ((1, 2),)
    assert [ids(places) for places in recording.states(0)] == [[1, 2], [1, 2, 7], [1, 2, 7, 8]]


def test_a_canvas_fills_and_is_edited() -> None:
    recording = Recording.of(DIFFUSED, [[1, 5, 2, 4, 6], [9]])
    assert recording.canvases == ((1, BLANK, 2, BLANK, BLANK), ())
    states = list(recording.states(0))
    assert [ids(places) for places in states] == [
        [1, BLANK, 2, BLANK, BLANK], [1, 5, 2, 7, BLANK], [1, 5, 2, 7, 6], [1, 5, 2, 4, 6],
    ]  # fmt: skip
    assert states[3][3] == Place(4, step=2, log_prob=-0.01, edits=1)
    assert states[2][3] == Place(7, step=0, log_prob=-0.5)
    assert states[3][0] == Place(1)
    assert [ids(places) for places in recording.states(1)] == [[], [], [9]]


def test_what_stays_unwritten_behind_an_end_stays_blank() -> None:
    trace = Trace((Written(0, 0, 2, 5, -0.1), Written(0, 0, 5, 6, -0.1)), passes=1, seconds=0.1)
    assert Recording.of(trace, [[1, 2, 5]]).canvases == ((1, 2, BLANK, BLANK, BLANK, BLANK),)


events = st.lists(
    st.builds(Written, st.integers(0, 6), st.integers(0, 2), st.integers(0, 9), st.integers(0, 20), st.floats(-9, 0)),
    max_size=20,
)


@given(events)
def test_recordings_come_back_from_json_and_are_traces_too(events: list[Written]) -> None:
    trace = Trace(tuple(sorted(events)), passes=7, seconds=1.5, end_token_ids=(2,))
    recording = Recording(trace=trace, canvases=((1, BLANK), ()), pieces={1: "</script>", 2: "ä\n"})
    text = recording.to_json()
    assert Recording.from_json(text) == recording
    assert Trace.from_json(text) == trace
    assert Recording.from_json(trace.to_json()) == Recording(trace=trace)


def test_pieces_read_as_in_a_text() -> None:
    for tokenizer in (sentencepiece_tokenizer(), byte_tokenizer()):
        written = tokenizer(" there was", add_special_tokens=False)["input_ids"]
        assert "".join(token_pieces(tokenizer, written)[token_id] for token_id in written).endswith(" there was")
        [accent, *_] = tokenizer("é", add_special_tokens=False)["input_ids"][-2:]
        assert "\N{REPLACEMENT CHARACTER}" not in token_pieces(tokenizer, [accent])[accent]  # half a character


def test_a_generation_can_be_recorded() -> None:
    tokenizer = byte_tokenizer()
    words = tokenizer("Once upon a time there was")["input_ids"]
    out = anyorder.generate(chain(tokenizer, words), tokenizer, "Once upon", max_new_tokens=4)
    recording = Recording.of(out.trace, out.sequences, tokenizer)
    *_, last = recording.states(0)
    assert "".join(recording.piece(place.token_id) for _, place in sorted(last.items())) == f"Once upon{out.text}"
    assert recording.rows == (0,)


# ------------------------------------------------------------------------------------------- the page


class Resources(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.script = ""
        self._within = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action")]
        self._within = tag == "script" and not attrs

    def handle_data(self, data: str) -> None:
        self.script += data if self._within else ""

    def handle_endtag(self, tag: str) -> None:
        self._within = False


def test_the_page_fetches_nothing_and_holds_the_recording() -> None:
    pieces = {1: "</script><script>alert(1)</script>", 2: "<!--", 4: "ä", 5: "\u2028", 6: "&amp;"}
    recording = Recording(trace=DIFFUSED, canvases=((1, BLANK, 2, BLANK, BLANK),), pieces=pieces)
    page = recording.page("</title>")
    resources = Resources()
    resources.feed(page)
    assert resources.found == []
    assert not re.search(r"https?:|url\(|@import|fetch\(", page)
    assert page.count("<script") == 2
    assert 'name="viewport"' in page
    [data] = re.findall(r'<script type="application/json" id="recording">(.*?)</script>', page, re.DOTALL)
    record = json.loads(data)
    assert {int(token_id): piece for token_id, piece in record["pieces"].items()} == pieces
    assert (record["title"], record["rows"]["0"]["canvas"]) == ("</title>", [1, BLANK, 2, BLANK, BLANK])
    assert record["rows"]["0"]["events"][0] == [0, 3, 7, -0.5]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the page's own function")
def test_the_page_shows_what_the_states_say() -> None:
    recording = Recording.of(DIFFUSED, [[1, 5, 2, 4, 6], [9]])
    resources = Resources()
    resources.feed(recording.page())
    [function] = re.findall(r"function placesAfter\(.*?\n}\n", resources.script, re.DOTALL)
    [data] = re.findall(r'id="recording">(.*?)</script>', recording.page(), re.DOTALL)
    for row in recording.rows:
        states = list(recording.states(row))
        program = (
            f'const recording = {data}; let name = "{row}"; {function}'
            f"console.log(JSON.stringify([...Array({len(states)}).keys()].map(placesAfter)));"
        )
        shown = json.loads(subprocess.run(["node", "-e", program], capture_output=True, check=True).stdout)
        for places, state in zip(shown, states, strict=True):
            assert [place["id"] for place in places] == ids(state)
            assert [place["edits"] for place in places] == [state[at].edits for at in sorted(state)]
            for place, at in zip(places, sorted(state), strict=True):
                assert (place["step"], place["logProb"]) == (state[at].step, state[at].log_prob)


def test_mistakes_are_told_with_the_remedy() -> None:
    with pytest.raises(UserError, match="the text is no trace"):
        Recording.from_json("{}")
    broken = json.loads(ORDERLY.to_json()) | {"pieces": [1]}
    with pytest.raises(UserError, match=r"the text is no recording .*: give what `anyorder generate --trace` wrote"):
        Recording.from_json(json.dumps(broken))


def test_a_token_of_probability_0() -> None:
    """Its logarithm is no number in JSON: null in files, and far below all others in a page."""
    trace = Trace((Written(0, 0, 1, 5, -math.inf), Written(1, 0, 2, 6, -0.5)), passes=2, seconds=0.1)
    recording = Recording.of(trace, [[1, 5, 6]])
    assert [event[-1] for event in json.loads(recording.to_json())["events"]] == [None, -0.5]
    assert Recording.from_json(recording.to_json()) == recording
    assert Trace.from_json(trace.to_json()) == trace
    [data] = re.findall(r'id="recording">(.*?)</script>', recording.page(), re.DOTALL)
    assert [event[3] for event in json.loads(data)["rows"]["0"]["events"]] == [NEVER, -0.5]
