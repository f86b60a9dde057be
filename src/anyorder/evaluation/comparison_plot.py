"""A comparison as a dot plot."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from anyorder.errors import UserError
from anyorder.evaluation.comparison import BEST, MEAN, Comparison

LINE, GAP = 0.17, 0.8
"""Height of a line in inches, and the space between two methods in lines."""


def draw(comparison: Comparison, file: Path) -> None:
    """Draw the share of right answers with its interval, and the time per question, a line for each method and count.

    Raises:
        UserError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a plot needs the package matplotlib, which is not installed: pip install 'anyorder[plots]'.")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    most = max(line.phrasings for line in comparison.lines)
    names = [line.name for line in comparison.lines if line.phrasings == most]  # in the order of the table
    lines = [line for name in names for line in comparison.lines if line.name == name]
    places = [number + GAP * names.index(line.name) for number, line in enumerate(lines)]
    first_of = {line.name: number for number, line in reversed(list(enumerate(lines)))}
    labels = [
        f"{line.name}    {line.phrasings}" if number == first_of[line.name] else f"{line.phrasings}"
        for number, line in enumerate(lines)
    ]
    figure, (right, cost) = pyplot.subplots(
        1, 2, figsize=(10, 1.2 + LINE * (places[-1] + 1)), sharey=True, width_ratios=(2, 1), layout="constrained"
    )
    for place, line in zip(places, lines, strict=True):
        color = pyplot.get_cmap("viridis")(0.85 * (1 - line.phrasings / most))
        share = line.lemma
        right.plot([100 * share.low, 100 * share.high], [place, place], color=color, linewidth=1.2)
        right.plot(100 * share.mean, place, "o", color=color, markersize=4.5)
        if line.name != BEST:  # which costs what all single phrasings do, and cannot be chosen
            cost.plot(1000 * line.seconds, place, "o", color=color, markersize=4.5)
    alone = next(line for line in lines if line.name == MEAN and line.phrasings == most)
    right.axvline(100 * alone.lemma.mean, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    right.set_yticks(places, labels, fontsize="small")
    right.set(xlabel="right answers, %, with 95 % intervals (dotted: single phrasings)")
    cost.set(xlabel="milliseconds per question")
    cost.set_xlim(left=0)
    for axes in (right, cost):
        axes.set_ylim(places[-1] + 1, -1)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
