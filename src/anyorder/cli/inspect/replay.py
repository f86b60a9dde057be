"""`anyorder inspect replay`."""

from __future__ import annotations

from pathlib import Path


def command(trace: Path, *, html: Path | None = None, row: int = 0, seconds: float = 0.1) -> None:
    """Replay how a text was written, in the terminal or as a page for a browser.

    Args:
        trace: What `anyorder generate --trace` wrote.
        html: New file for a page with a slider, which needs nothing else, no network either.
        row: Number of the text to replay in the terminal, from 0.
        seconds: Between two steps in the terminal; where the output is none, the steps are printed below each other.
    """
    import math
    import time

    from anyorder.cli._canvas import CanvasView
    from anyorder.cli._console import PlainConsole
    from anyorder.errors import UserError
    from anyorder.inspection.replay import Recording
    from anyorder.utils.files import check_place, whole_file

    if html is not None:
        check_place(html, folder=False)
    try:
        recording = Recording.from_json(Path(trace).read_text(encoding="utf-8"))
    except (UserError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(
            f"{str(trace)!r} holds no trace: give a file that `anyorder generate --trace` wrote."
        ) from error
    if html is not None:
        with whole_file(html) as partial:
            partial.write_text(recording.page(Path(trace).name), encoding="utf-8")
        PlainConsole(stderr=True).print(f"wrote {html}", soft_wrap=True)
        return
    if row not in recording.rows:
        raise UserError(f"row is {row}: give the number of one of the {len(recording.rows)} texts, from 0.")
    if not 0 <= seconds < math.inf:
        raise UserError(f"seconds is {seconds}: give 0 or more.")
    console = PlainConsole()
    with CanvasView(console, recording.piece) as view:
        drawn = None
        for number, places in enumerate(recording.states(row)):
            if places is drawn:  # the step wrote nothing here
                continue
            drawn = places
            if number and console.is_terminal:
                time.sleep(seconds)
            view.draw(places, number)
            if not console.is_terminal:
                console.print(view.picture(places, number))
