"""Replays of a generation: the token at each position after each step, as data and as a page for a browser.

A recording is a trace with what the trace leaves out: the canvas before the first step and how tokens read. It says
nothing that only one mode has, so left to right, any order and diffusion, edits included, replay alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.api.text import UNREADABLE
from anyorder.checkpoints.tokenizer.encoding import plain_tokens
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.trace import MOST, Trace, Written
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEVER = -1e6
"""Stands in a page for the logarithm of the probability 0, for which JSON has no number."""

TEMPLATE = Path(__file__).with_name("replay.html")


@dataclass(frozen=True)
class Place:
    """What stands at a position.

    Attributes:
        token_id: the token, `BLANK` where none is written yet.
        step: in which it was written; None for what was given.
        log_prob: natural logarithm of the probability that it was chosen by.
        edits: how often a token that had been written was replaced.
    """

    token_id: int
    step: int | None = None
    log_prob: float | None = None
    edits: int = 0

    def then(self, event: Written) -> Place:
        """Return the place after it has been written."""
        return Place(event.token_id, event.step, event.log_prob, self.edits + (self.step is not None))


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A trace that can be shown.

    Attributes:
        trace: what was written, where, when and how surely.
        canvases: of each row, the token ids before the first step, `BLANK` where one was to be written; rows that
            grow, such as those written from left to right, begin as their prompts.
        pieces: how a token reads, by its id; those that are missing read as their number.
    """

    trace: Trace
    canvases: tuple[tuple[int, ...], ...] = ()
    pieces: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, trace: Trace, sequences: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Recording:
        """Make the recording of a generation, from its trace and its `sequences`."""
        canvases = tuple(_canvas(trace, row, ids) for row, ids in enumerate(sequences))
        known = {token_id for canvas in canvases for token_id in canvas} | {event.token_id for event in trace.events}
        pieces = {} if tokenizer is None else token_pieces(tokenizer, sorted(known - {BLANK}))
        return cls(trace=trace, canvases=canvases, pieces=pieces)

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of the rows."""
        return tuple(sorted({*range(len(self.canvases)), *(event.sample_id for event in self.trace.events)}))

    def states(self, row: int) -> Iterator[dict[int, Place]]:
        """Return the token at each position, before the first step of a row and after each of its steps.

        After a step that wrote nothing it is the same mapping again.
        """
        canvas = self.canvases[row] if row < len(self.canvases) else ()
        places = {position: Place(token_id) for position, token_id in enumerate(canvas)}
        by_step: dict[int, dict[int, Written]] = {}
        for event in self.trace.events:
            if event.sample_id == row:
                by_step.setdefault(event.step, {})[event.position] = event
        yield places
        for step in range(1 + max(by_step, default=-1)):
            if written := by_step.get(step):
                places = places | {at: places.get(at, Place(BLANK)).then(event) for at, event in written.items()}
            yield places

    def piece(self, token_id: int) -> str:
        """Return how a token reads."""
        return self.pieces.get(token_id, f" {token_id}")

    def to_json(self) -> str:
        """JSON text that `from_json` reads, and `Trace.from_json` too, which takes the trace alone."""
        record = json.loads(self.trace.to_json())
        return json.dumps(record | {"canvases": self.canvases, "pieces": self.pieces}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Recording:
        """Return the recording that `to_json` wrote, or that of a trace alone, without its prompts.

        Raises:
            UserError: the text is neither.
        """
        trace = Trace.from_json(text)
        record: dict[str, Any] = json.loads(text)
        try:
            canvases = tuple(tuple(map(_token_id, canvas)) for canvas in record.get("canvases", ()))
            pieces = {int(token_id): _piece(piece) for token_id, piece in record.get("pieces", {}).items()}
        except (ValueError, TypeError, AttributeError) as error:
            reason = repr(error)[:200]
            raise UserError(
                f"the text is no recording ({reason}): give what `anyorder generate --trace` wrote."
            ) from error
        return cls(trace=trace, canvases=canvases, pieces=pieces)

    def page(self, title: str = "replay") -> str:
        """Return a page of HTML with a slider over the steps; it needs nothing else, no network either."""
        events: dict[int, list[tuple[int, int, int, float]]] = {row: [] for row in self.rows}
        for event in self.trace.events:
            log_prob = max(round(event.log_prob, 4), NEVER)
            events[event.sample_id].append((event.step, event.position, event.token_id, log_prob))
        rows = {
            row: {"canvas": self.canvases[row] if row < len(self.canvases) else (), "events": written}
            for row, written in events.items()
        }
        record = {
            "title": title.encode(errors="replace").decode(), "summary": self.trace.summary(), "rows": rows,
            "pieces": self.pieces, "ends": self.trace.end_token_ids,
        }  # fmt: skip
        # Within a script, "</script>" and "<!--" would end or change it.
        data = json.dumps(record, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        return TEMPLATE.read_text(encoding="utf-8").replace("{{recording}}", data)


def _canvas(trace: Trace, row: int, sequence: Sequence[int]) -> tuple[int, ...]:
    """Return the canvas of a row before its first step."""
    written = [event.position for event in trace.events if event.sample_id == row]
    if written and written == list(range(written[0], written[-1] + 1)):  # one after another: it grew
        return tuple(sequence[: written[0]])
    given = dict(enumerate(sequence)) | dict.fromkeys(written, BLANK)
    return tuple(given.get(position, BLANK) for position in range(max(given, default=-1) + 1))


def _token_id(value: object) -> int:
    """Return a token of a canvas, or `BLANK`."""
    if type(value) is not int or not (value == BLANK or 0 <= value < MOST):
        raise ValueError(f"{value!r:.50} is no token id")
    return value


def _piece(value: object) -> str:
    """Text that can be printed, without halves of surrogate pairs."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.50} is no text")
    value.encode()
    return value


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[int, str]:
    """Spell each token as within a text, with the space that it begins with; what is no whole character by name."""
    anchor = plain_tokens(tokenizer, "a")[-1:]
    before = str(tokenizer.decode(anchor))
    pieces: dict[int, str] = {}
    for token_id in ids:
        # Alone, a token of SentencePiece would lose its space.
        text = str(tokenizer.decode([*anchor, token_id]))
        whole = text.startswith(before) and UNREADABLE not in text and len(text) > len(before)
        pieces[token_id] = text[len(before) :] if whole else str(tokenizer.convert_ids_to_tokens(token_id))
    return pieces
