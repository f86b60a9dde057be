"""Experts against a dense network of equal active width: loss over steps and over time, and the load of each expert.

    OMP_NUM_THREADS=1 python benchmarks/expert_study.py tinystories.txt

Two networks that differ in their feed-forward layers alone are trained on the same rows in the same order: dense, and
a mixture of experts of which a few read each token, together as wide as the dense layer. Both are repeated with other
seeds, which draw weights and order. The last tenth of the text is never learnt. Time is the processor's, in steps
alone, on one thread. Prints tables, writes benchmarks/results/expert-study.json and draws docs/images/expert-study.png;
`--draw` draws anew what was written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from stories import BLUE, ORANGE, Interval, Stories, draw_runs, interval, losses, parameters, train

from anyorder.inspection.speed import machine
from anyorder.model.config import ModelConfig
from anyorder.model.experts import Experts, routings_of
from anyorder.model.rope import Rotary
from anyorder.training import Training

ROOT = Path(__file__).parent.parent
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "expert-study.json", ROOT / "docs" / "images" / "expert-study.png"

DENSE, MIXTURE = "dense", "experts"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print tables, write them down, draw."""
    options = _options(arguments)
    if not options.draw:
        for found in study(options):
            options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(options.output.read_text(encoding="utf-8"))
    report(found)
    draw(found, options.picture)


def study(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train both networks with each seed; yield what was found so far after each."""
    stories = Stories(options.text, options.vocabulary)
    learnt_NL = stories.rows(stories.learnt, options.length)
    held_NL = stories.rows(stories.held_back, options.length)[: options.held_rows]
    looked_at_NL = held_NL[: options.looked_at]
    runs: dict[str, list[dict[str, Any]]] = {DENSE: [], MIXTURE: []}
    given = {name: str(value) for name, value in vars(options).items() if name not in ("text", "output", "picture")}
    found = {
        "machine": machine(), "options": given, "runs": runs,
        "parameters": {name: parameters(config) for name, config in networks(options).items()},
        "tokens learnt from": learnt_NL.numel(), "tokens held back": held_NL.numel(),
    }  # fmt: skip
    for seed in range(options.seeds):
        for name, config in networks(options).items():
            training = Training(
                steps=options.steps, batch_size=options.batch, learning_rate=options.learning_rate, seed=seed,
                log_every=options.every, evaluate_every=options.every,
                balance_loss=options.balance_loss if name == MIXTURE else 0.0,
            )  # fmt: skip
            model, log, seconds = train(config, learnt_NL, training, looked_at_NL)
            curve = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
            runs[name].append({
                "seed": seed,
                "steps": list(curve),
                "losses": list(curve.values()),
                "seconds": [seconds[step] for step in curve],
                "held back": losses(model, held_NL, options.batch).mean(1).tolist(),
                "load": load(model, held_NL) if name == MIXTURE else [],
            })  # fmt: skip
            print(f"{name}, seed {seed}: {runs[name][-1]['losses'][-1]:.3f} in {seconds[-1]:.0f} s", flush=True)
        yield found


def networks(options: argparse.Namespace) -> dict[str, ModelConfig]:
    """The two networks."""
    dense = ModelConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.chosen * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.length,
        rotary=Rotary(theta=10_000.0),
        tie_word_embeddings=True,
    )
    experts = Experts(number=options.experts, chosen=options.chosen, width=options.width, normalise=True)
    return {DENSE: dense, MIXTURE: dense.replace(experts=experts, layers=())}


def load(model: torch.nn.Module, rows_NL: torch.Tensor) -> list[list[float]]:
    """Of each layer, the share of rows that each expert reads, times the number of experts: 1 is even."""
    with torch.no_grad(), routings_of(model) as routings:
        model(rows_NL)
    return [(routing.load / routing.load.sum() * len(routing.load)).tolist() for routing in routings]


def report(found: dict[str, Any]) -> None:
    """Print tables."""
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    print("\n| network | weights | that read a token | loss held back | seconds a step |\n|---|---|---|---|---|")
    for name, runs in found["runs"].items():
        total, active = found["parameters"][name]
        loss = interval([_mean(run["held back"]) for run in runs])
        seconds = interval([run["seconds"][-1] / run["steps"][-1] for run in runs])
        print(f"| {name} | {total / 1e6:.2f} million | {active / 1e6:.2f} million | {loss} | {seconds} |")
    print(f"\nexperts below dense, pairs of seeds: {gain(found)} nats a token")
    for dense, experts in zip(found["runs"][DENSE], found["runs"][MIXTURE], strict=True):
        rows = [one - other for one, other in zip(dense["held back"], experts["held back"], strict=True)]
        print(f"seed {dense['seed']}, over rows of text: {interval(rows)}")
    for run in found["runs"][MIXTURE]:
        busiest, idlest = max(map(max, run["load"])), min(map(min, run["load"]))
        print(f"seed {run['seed']}: load of an expert from {idlest:.2f} to {busiest:.2f}; 1 is even")
    for target, steps, seconds in reached(found):
        print(
            f"experts reach dense's last loss, {target:.3f}, after {steps:.0%} of its steps, {seconds:.0%} of its time"
        )


def gain(found: dict[str, Any]) -> Interval:
    """How many nats a token the experts are below the dense network, at the end, over pairs of the same seed."""
    pairs = zip(found["runs"][DENSE], found["runs"][MIXTURE], strict=True)
    return interval([_mean(dense["held back"]) - _mean(experts["held back"]) for dense, experts in pairs])


def reached(found: dict[str, Any]) -> list[tuple[float, float, float]]:
    """For each seed: dense's last loss, and when experts had it, as shares of dense's steps and time."""
    lines = []
    for dense, experts in zip(found["runs"][DENSE], found["runs"][MIXTURE], strict=True):
        target = dense["losses"][-1]
        step, second = (_crossing(experts[axis], experts["losses"], target) for axis in ("steps", "seconds"))
        lines.append((target, step / dense["steps"][-1], second / dense["seconds"][-1]))
    return lines


def _crossing(at: Sequence[float], values: Sequence[float], target: float) -> float:
    """Where a falling curve meets a value, between its points; infinite where it does not."""
    for index in range(1, len(at)):
        if values[index] <= target:
            share = (values[index - 1] - target) / max(values[index - 1] - values[index], 1e-12)
            return at[index - 1] + min(max(share, 0.0), 1.0) * (at[index] - at[index - 1])
    return float("inf")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw(found: dict[str, Any], file: Path) -> None:
    """Loss over steps, loss over time, load of each expert."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    over_steps, over_time, loads = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    for name, colour in ((DENSE, BLUE), (MIXTURE, ORANGE)):
        runs = found["runs"][name]
        seconds = [_mean(values) for values in zip(*(run["seconds"] for run in runs), strict=True)]
        for axes, at in ((over_steps, runs[0]["steps"]), (over_time, seconds)):
            means = draw_runs(axes, at, [run["losses"] for run in runs], colour)
            above = name == DENSE
            axes.annotate(
                name, (at[-1], means[-1]), xytext=(0, 9 if above else -13), textcoords="offset points", ha="right",
                color=colour,
            )  # fmt: skip
    floor = min(run["losses"][-1] for runs in found["runs"].values() for run in runs)
    for axes, label in ((over_steps, "optimizer step"), (over_time, "processor seconds in steps")):
        axes.set_xlabel(label)
        axes.set_ylim(floor - 0.15, floor + 1.6)
    over_steps.set_ylabel("loss held back, nats per token")
    over_steps.set_title("loss over steps", fontsize=10)
    over_time.set_title("loss over time", fontsize=10)
    _draw_loads(loads, found["runs"][MIXTURE])
    figure.savefig(file, format="png", dpi=130)


def _draw_loads(axes: Any, runs: Sequence[dict[str, Any]]) -> None:
    """A point for each expert of each layer and seed, beside the line of an even load."""
    layers = len(runs[0]["load"])
    for run, marker in zip(runs, "osv^D<>ph", strict=False):
        at = [layer + 1 + (run["seed"] - (len(runs) - 1) / 2) * 0.2 for layer in range(layers)]
        for place, values in zip(at, run["load"], strict=True):
            axes.plot([place] * len(values), values, marker, color=ORANGE, markersize=4, alpha=0.8)
    axes.axhline(1, color="grey", linewidth=1, linestyle=":")
    axes.annotate("even", (1, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(1, layers + 1))
    axes.set_xlabel("layer (columns of points: seeds)")
    axes.set_title("load of each expert, held back", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="stories, in one file")
    for name, value, meaning in (
        ("vocabulary", 512, "tokens of the tokenizer"), ("hidden", 96, "width of a row"),
        ("layers", 4, "of the network"), ("heads", 3, "of a layer"), ("width", 144, "of an expert"),
        ("experts", 8, "of a layer"), ("chosen", 2, "experts that read a token"), ("length", 128, "tokens of a row"),
        ("batch", 8, "rows of a step"), ("steps", 300, "of the optimizer"), ("every", 30, "steps between two points"),
        ("seeds", 3, "pairs of networks"), ("looked_at", 96, "rows held back, for the curves"),
        ("held_rows", 800, "rows held back, for the last loss"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=meaning)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--balance_loss", type=float, default=0.01, help="weight of the load-balancing loss")
    parser.add_argument("--draw", action="store_true", help="train nothing: draw the results that were written")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the numbers are written")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the plot is drawn")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
