"""A comparison as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from anyorder.errors import UserError
from anyorder.evaluation.comparison import BEST, Comparison


def draw(comparison: Comparison, file: Path) -> None:
    """A picture: share of right answers, and seconds per question, against the number of phrasings.

    Raises:
        UserError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a plot needs the package matplotlib, which is not installed: pip install 'anyorder[plots]'.")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (right, cost) = pyplot.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    most = max(line.phrasings for line in comparison.lines)
    names = [line.name for line in comparison.lines if line.phrasings == most]  # in the order of the table
    for number, name in enumerate(names):
        lines = [line for line in comparison.lines if line.name == name]
        at = [line.phrasings for line in lines]
        look = {"marker": "os^Dv*Xp<>"[number % 10], "color": pyplot.get_cmap("tab20")(number % 20), "label": name}
        low, high = ([100 * getattr(line.lemma, end) for line in lines] for end in ("low", "high"))
        right.plot(at, [100 * line.lemma.mean for line in lines], **look)
        right.fill_between(at, low, high, color=look["color"], alpha=0.06)
        if name != BEST:  # which costs what all single phrasings do, and cannot be chosen
            cost.plot(at, [1000 * line.seconds for line in lines], **look)
    right.set(xlabel="phrasings", ylabel="right answers, %")
    cost.set(xlabel="phrasings", ylabel="milliseconds per question", yscale="log")
    for axes in (right, cost):
        axes.set_xticks(sorted({line.phrasings for line in comparison.lines}))
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
