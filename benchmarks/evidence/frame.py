"""What every piece of evidence has: parts that are kept and resumed, findings with intervals, a table and a plot.

A piece of evidence is a module of this folder with `TITLE`, `QUICK` and `FULL` (sizes, any record) and
`findings(study) -> Iterable[Finding]`. All that takes time goes through `Study.part`, `Study.trained` and
`Study.curve`, which keep their results in the study's folder, so that the same command resumes where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.objectives import Objective
from anyorder.training import Training, fit
from anyorder.training.samples import Rows, TensorRows
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
        at: place on the axis of a curve, which the group then names behind "by", as in "bits per character by step".
    """

    group: str
    label: str
    series: str
    value: float
    low: float
    high: float
    at: float | None = None

    @classmethod
    def of(
        cls, group: str, label: str, series: str, by_seed: Sequence[Sequence[float]], at: float | None = None
    ) -> Finding:
        """The mean over seeds and texts.

        Args:
            group, label, series, at: see the class.
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
        return cls(group=group, label=label, series=series, value=value, low=value - half, high=value + half, at=at)

    @classmethod
    def exact(cls, group: str, label: str, series: str, value: float, at: float | None = None) -> Finding:
        """A number that is counted, not estimated."""
        return cls(group=group, label=label, series=series, value=value, low=value, high=value, at=at)


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
        self._inside = False

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns, plain values that JSON holds; read it if it was computed before."""
        file = self.parts / f"{name}.json"
        if not file.exists():
            inside, self._inside = self._inside, True
            started = time.perf_counter()
            try:
                value = compute()
            finally:
                self._inside = inside
            # The time of a part within another one is that one's.
            seconds = 0.0 if inside else time.perf_counter() - started
            with whole_file(file) as partial:
                partial.write_text(json.dumps({"seconds": seconds, "value": value}) + "\n", encoding="utf-8")
            self.report(f"{name}: {seconds:.0f} s")
        return self._kept(name)

    def _kept(self, name: str) -> Any:
        """Return a part that was computed before."""
        file = self.parts / f"{name}.json"
        if not file.exists():
            raise UserError(f"folder {str(self.folder)!r} lacks the part {name!r}: remove the folder, and run again.")
        return json.loads(file.read_text(encoding="utf-8"))["value"]

    def require(self, **about: object) -> None:
        """Refuse parts in the folder that were computed of other sizes or other data; note these the first time.

        Raises:
            UserError: there are such.
        """
        file = self.folder / "about.json"
        said = {name: str(value) for name, value in about.items()}
        if not file.exists():
            with whole_file(file) as partial:
                partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        for name, value in json.loads(file.read_text(encoding="utf-8")).items():
            if said.get(name) != value:
                raise UserError(
                    f"folder {str(self.folder)!r} has parts of other {name} ({value}): give another --folder, or "
                    "remove it."
                )

    def tensor(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the same of a tensor of integers."""
        return torch.tensor(self.part(name, lambda: compute().tolist()))

    def trained(
        self,
        name: str,
        make: Callable[[], Llama],
        objective: Objective,
        rows: Tensor | Rows,
        training: Training,
        *,
        looks: Collection[int] = (),
        look: Callable[[Llama, int], object] = lambda model, step: None,
    ) -> Llama:
        """Return a network that learnt an objective; read it if it was trained before, resume if it was interrupted.

        Args:
            name: of its folder.
            make: makes the network to begin with; `adapt` gives it what the objective needs.
            objective, training: see `anyorder.training.fit`.
            rows: prepared rows, or int64 `[rows, length]`.
            looks: optimizer steps after which `look` is called with the network and the step.
            look: callback, which leaves the network as it is.
        """
        folder = self.folder / name
        prepared = TensorRows(rows) if isinstance(rows, Tensor) else rows

        def learn() -> int:
            if not (folder / "config.json").exists():
                model = adapt(make(), objective.modes, seed=training.seed)
                place = self.folder / f"{name}-checkpoints"
                resume = any(place.glob("checkpoint-*/trainer_state.json"))
                callbacks = [AtSteps(looks, lambda step: look(model, step))]
                fit(model, objective, prepared, training, folder=place, resume=resume, callbacks=callbacks)
                anyorder.save(model, None, folder)
            return training.total_steps

        self.part(f"training of {name}", learn)
        return anyorder.load(folder, device="cpu")[0]

    def curve(
        self, name: str, make: Callable[[], Llama], objective: Objective, rows: Tensor | Rows, training: Training,
        looks: Collection[int], look: Callable[[Llama], Any],
    ) -> tuple[Llama, dict[int, Any]]:  # fmt: skip
        """Train as `trained` does; return the network, and what `look` returned of it after each of some steps.

        Args:
            name, make, objective, rows, training: see `trained`.
            looks: optimizer steps, none behind the last one.
            look: returns plain values that JSON holds, such as the losses of texts.
        """

        def seen(model: Llama, step: int) -> Any:
            return self.part(f"{name}-after-{step}", lambda: look(model))

        model = self.trained(name, make, objective, rows, training, looks=looks, look=seen)
        return model, {step: self._kept(f"{name}-after-{step}") for step in sorted(looks)}

    @property
    def minutes(self) -> float:
        """All parts together, those of earlier runs included."""
        files = self.parts.glob("*.json")
        return sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files) / 60


class AtSteps(TrainerCallback):
    """Calls back after some optimizer steps.

    Args:
        steps: which.
        look: callback, called with the step.
    """

    def __init__(self, steps: Collection[int], look: Callable[[int], object]) -> None:
        self.steps, self.look = frozenset(steps), look

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Call back; the network is as it is where texts are written, until training goes on."""
        if state.global_step in self.steps:
            model.eval()
            self.look(state.global_step)
            model.train()


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


CURVE_ROWS = 11
"""Height of a panel of curves, in rows of dots."""


def plot(title: str, findings: Sequence[Finding], file: Path) -> None:
    """Draw a panel for each group: a dot with its interval for each finding, or a curve of those that have a place.

    Series have a colour and their name.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(finding.group for finding in findings))
    colors = dict(zip(dict.fromkeys(finding.series for finding in findings), itertools.cycle(SERIES)))
    rows = [[finding for finding in findings if finding.group == group] for group in groups]
    heights = [CURVE_ROWS if row[0].at is not None else len(row) + 1 for row in rows]
    figure, panels = pyplot.subplots(
        len(groups), 1, figsize=(9, 0.85 * len(groups) + 0.26 * (sum(heights) - len(groups)) + 0.6), squeeze=False,
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize="medium")
    for (axes,), group, row in zip(panels, groups, rows, strict=True):
        assert len({colors[finding.series] for finding in row}) == len({finding.series for finding in row}), group
        axes.spines[["top", "right"]].set_visible(False)
        (_dots if row[0].at is None else _curves)(axes, group, row, colors)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _with_intervals(measured: str, row: Sequence[Finding]) -> str:
    return f"{measured},\nwith 95 % intervals" if any(finding.low < finding.high for finding in row) else measured


def _dots(axes: Any, group: str, row: Sequence[Finding], colors: Mapping[str, str]) -> None:
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
    axes.set_xlabel(_with_intervals(group, row), fontsize="small")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.45 * (right - left))  # room for the names
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _curves(axes: Any, group: str, row: Sequence[Finding], colors: Mapping[str, str]) -> None:
    """A line with an interval at each point; names stand at the ends, moved apart where lines end together."""
    measured, _, along = group.rpartition(" by ")
    by_series = {series: [finding for finding in row if finding.series == series] for series in colors}
    by_series = {series: found for series, found in by_series.items() if found}
    for series, found in by_series.items():
        at, values = [finding.at for finding in found], [finding.value for finding in found]
        reach = [
            [finding.value - finding.low for finding in found],
            [finding.high - finding.value for finding in found],
        ]
        axes.errorbar(at, values, yerr=reach, color=colors[series], linewidth=1.6, marker="o", markersize=4, capsize=2)
    low, high = axes.get_ylim()
    gap = (high - low) / CURVE_ROWS
    ends = sorted(by_series, key=lambda series: by_series[series][-1].value)
    places = [by_series[series][-1].value for series in ends]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    right = max(finding.at for finding in row if finding.at is not None)
    left = min(finding.at for finding in row if finding.at is not None)
    for series, place in zip(ends, places, strict=True):
        axes.annotate(
            f"{by_series[series][-1].value:.2f}  {series}", (right, place), xytext=(8, 0), va="center",
            textcoords="offset points", fontsize="x-small", color=colors[series],
        )  # fmt: skip
    axes.set_xlim(left - 0.05 * (right - left), right + 0.5 * (right - left))
    axes.set_ylim(low, max(high, places[-1] + gap))
    axes.set_ylabel(_with_intervals(measured.rstrip(","), row), fontsize="small", wrap=True)
    axes.set_xlabel(along, fontsize="small")
    axes.grid(alpha=0.3)
