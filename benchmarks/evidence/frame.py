"""What every piece of evidence has: parts that are kept and resumed, findings with intervals, a table and a plot.

A piece of evidence is a module of this folder with `TITLE`, `QUICK` and `FULL` (sizes, any record) and
`findings(study) -> Iterable[Finding]`. All that takes time goes through `Study.part` and `Study.trained`, which keep
their results in the study's folder, so that the same command resumes where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.model.llama import Llama
from anyorder.objectives import Objective
from anyorder.training import Training, fit
from anyorder.training.samples import TensorRows
from anyorder.utils.files import whole_file

NORMAL = 1.96
"""Standard errors on each side of a 95 % interval."""

SEEDS = (0, 1, 2)
"""Of networks that are trained."""

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which those who are colour-blind tell apart."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A number with its 95 % interval.

    Attributes:
        group: heading in table and plot.
        label: what was measured, such as a way of writing.
        series: which network, such as "mixture"; colours the plot.
        value, low, high: the number and its interval.
    """

    group: str
    label: str
    series: str
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, group: str, label: str, series: str, by_seed: Sequence[Sequence[float]]) -> Finding:
        """The mean over seeds and texts.

        Args:
            group, label, series: see the class.
            by_seed: for each seed the values of its texts, which no other seed has. With several seeds the interval
                is that of their means, by Student's distribution; it holds the differences of texts, too.
        """
        means = torch.tensor([torch.tensor(values, dtype=torch.float64).mean() for values in by_seed])
        if len(means) > 1:
            half = student(len(means) - 1) * float(means.std()) / math.sqrt(len(means))
        else:
            values = torch.tensor(by_seed[0], dtype=torch.float64)
            half = NORMAL * float(values.std()) / math.sqrt(len(values))
        value = float(means.mean())
        return cls(group=group, label=label, series=series, value=value, low=value - half, high=value + half)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's distribution."""
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))


class Study:
    """One run of a piece of evidence.

    Args:
        name: of the module.
        data: folder with public data, such as stories260K.
        folder: where parts are kept.
        quick: smaller sizes.
        report: callback, called with each line of progress.
    """

    def __init__(self, name: str, data: Path, folder: Path, *, quick: bool, report: Callable[[str], None]) -> None:
        self.name, self.data, self.folder, self.quick, self.report = name, data, folder, quick, report
        self.parts = folder / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns, plain values that JSON holds; read it if it was computed before."""
        file = self.parts / f"{name}.json"
        if not file.exists():
            started = time.perf_counter()
            value = compute()
            seconds = time.perf_counter() - started
            with whole_file(file) as partial:
                partial.write_text(json.dumps({"seconds": seconds, "value": value}) + "\n", encoding="utf-8")
            self.report(f"{name}: {seconds:.0f} s")
        return json.loads(file.read_text(encoding="utf-8"))["value"]

    def tensor(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the same of a tensor of integers."""
        return torch.tensor(self.part(name, lambda: compute().tolist()))

    def trained(
        self, name: str, make: Callable[[], Llama], objective: Objective, ids_NL: Tensor, training: Training
    ) -> Llama:
        """Return a network that learnt an objective; read it if it was trained before, resume if it was interrupted.

        Args:
            name: of its folder.
            make: makes the network to begin with; `adapt` gives it what the objective needs.
            objective, training: see `anyorder.training.fit`.
            ids_NL: int64 `[rows, length]`.
        """
        folder = self.folder / name

        def learn() -> int:
            if not (folder / "config.json").exists():
                model = adapt(make(), objective.modes, seed=training.seed)
                place = self.folder / f"{name}-checkpoints"
                resume = any(place.glob("checkpoint-*/trainer_state.json"))
                fit(model, objective, TensorRows(ids_NL), training, folder=place, resume=resume)
                anyorder.save(model, None, folder)
            return training.total_steps

        self.part(f"training of {name}", learn)
        return anyorder.load(folder, device="cpu")[0]

    @property
    def minutes(self) -> float:
        """All parts together, those of earlier runs included."""
        files = self.parts.glob("*.json")
        return sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files) / 60


def table(findings: Iterable[Finding]) -> str:
    """As markdown, a table for each group."""
    lines: list[str] = []
    group = None
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", f"| {group} | network | value | 95 % interval |", "|---|---|---:|---|"]
        interval = f"{finding.low:.3f} to {finding.high:.3f}"
        lines.append(f"| {finding.label} | {finding.series} | {finding.value:.3f} | {interval} |")
    return "\n".join(lines).strip() + "\n"


def record(findings: Iterable[Finding], **about: Any) -> str:
    """As JSON."""
    return json.dumps({**about, "findings": [asdict(finding) for finding in findings]}, indent=1) + "\n"


def plot(title: str, findings: Sequence[Finding], file: Path) -> None:
    """Draw a dot with its interval for each finding, one panel for each group; series have a colour and their name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(finding.group for finding in findings))
    colors = dict(zip(dict.fromkeys(finding.series for finding in findings), itertools.cycle(SERIES)))
    rows = [[finding for finding in findings if finding.group == group] for group in groups]
    figure, panels = pyplot.subplots(
        len(groups), 1, figsize=(8, 0.7 * len(groups) + 0.26 * len(findings) + 0.6), squeeze=False,
        height_ratios=[len(row) + 1 for row in rows], layout="constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize="medium")
    for (axes,), group, row in zip(panels, groups, rows, strict=True):
        assert len({colors[finding.series] for finding in row}) == len({finding.series for finding in row}), group
        for place, finding in enumerate(row):
            color = colors[finding.series]
            axes.plot([finding.low, finding.high], [place, place], color=color, linewidth=2)
            axes.plot(finding.value, place, "o", color=color, markersize=5)
            axes.annotate(
                f"{finding.value:.2f}  {finding.series}", (finding.high, place), xytext=(5, 0), va="center",
                textcoords="offset points", fontsize="x-small", color=color,
            )  # fmt: skip
        axes.set_yticks(range(len(row)), [finding.label for finding in row], fontsize="small")
        axes.set_ylim(len(row) - 0.4, -0.6)
        axes.set_xlabel(f"{group}, with 95 % intervals", fontsize="small")
        axes.margins(x=0.25)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)
