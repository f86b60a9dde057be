"""A canvas in the terminal, while it fills."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from anyorder.api.generate import generate
from anyorder.api.images import as_tokens, seen
from anyorder.api.output import Output
from anyorder.api.prompts import Prompt, prompts_for
from anyorder.cli._console import PlainConsole
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.trace import Step
from anyorder.inspection.replay import Place, token_pieces

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

HOLE = "·"
"""Drawn where no token is written yet."""

IMAGE_ROW = "▒"
"""Stands for each row of an image."""


class CanvasView:
    """Draws a canvas in place; to be entered as a context, so that the terminal is itself again after Ctrl-C.

    Given tokens are dim, those written in the latest step reversed, unsure ones yellow, and a replaced one underlined.
    Where there is no terminal nothing is drawn.

    Args:
        console: where to.
        piece: how a token reads.
    """

    WIDTH = 80

    def __init__(self, console: Console, piece: Callable[[int], str]) -> None:
        self._piece = piece
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
        self._drawn = console.is_terminal

    def __enter__(self) -> CanvasView:
        if self._drawn:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._live.stop()

    def draw(self, places: Mapping[int, Place], steps: int) -> None:
        """Draw the token at each position after so many steps."""
        if self._drawn:
            self._live.update(self.picture(places, steps), refresh=True)

    def picture(self, places: Mapping[int, Place], steps: int) -> Text:
        """Return the same as text, at most 80 columns wide."""
        text = Text()
        for _, place in sorted(places.items()):
            text.append(*self._styled(place, steps))
        missing = sum(place.token_id == BLANK for place in places.values())
        to_write = f", {missing} to write" if missing else ""
        lines = text.wrap(Console(width=self.WIDTH), self.WIDTH)
        return Text("\n").join([*lines, Text(f"step {steps}{to_write}", style="dim")])

    def _styled(self, place: Place, steps: int) -> tuple[str, str]:
        if place.token_id == BLANK:
            return HOLE, "dim"
        piece = self._piece(place.token_id)
        if place.step is None:
            return piece, "dim"
        styles = ["reverse"] if place.step == steps - 1 else []
        styles += ["yellow"] if place.log_prob is not None and place.log_prob < math.log(0.5) else []
        styles += ["underline"] if place.edits else []
        return piece, " ".join(styles)


def show_writing(
    model: Llama, tokenizer: Any, prompt: Prompt, options: Mapping[str, Any], *, delay: float = 0.0
) -> Output:
    """Write one text and draw it meanwhile.

    Args:
        model, tokenizer, prompt: as in `anyorder.generate`.
        options: further ones of it.
        delay: seconds to wait after each step.

    Raises:
        UserError: see there.
    """
    prompt, images = seen(model, tokenizer, prompt, options.get("images"))
    [canvas] = prompts_for(
        options["order"], prompt, tokenizer, model.config, options["max_new_tokens"], options.get("gap_tokens"), images
    ).rows
    canvas = as_tokens(canvas, model.config)
    places = {at: Place(token_id) for at, token_id in enumerate(canvas)}
    vision = model.config.vision
    pieces: dict[int, str] = {} if vision is None else {vision.image_token_id: IMAGE_ROW}

    def piece(token_id: int) -> str:
        if tokenizer is None:
            return f" {token_id}"
        if token_id not in pieces:
            pieces.update(token_pieces(tokenizer, [token_id]))
        return pieces[token_id]

    with CanvasView(PlainConsole(), piece) as view:
        view.draw(places, 0)

        def watch(step: Step) -> None:
            for event in step.written:
                places[event.position] = places.get(event.position, Place(BLANK)).then(event)
            view.draw(places, 1 + max((event.step for event in step.written), default=-1))
            time.sleep(delay)

        return generate(model, tokenizer, prompt, watch=watch, **options)
