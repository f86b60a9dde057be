"""What a group costs: tokens per second against the size of groups, and a step in any order against one left to right.

Run: python benchmarks/any_order_speed.py [--output docs/images/any-order-groups.png]

Networks with random weights, one prompt of 16 tokens, 64 tokens written after it, with caches and without a compiler.
All candidates take turns, and medians are compared. Writes benchmarks/results/any-order-speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from anyorder.checkpoints.adapt import adapt
from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.canvas import continuation
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.decoding.sampling import Sampling
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.model.rope import Rotary
from anyorder.orders.kinds import LeftToRight, MostConfident, Random

SIZES = (1, 2, 4, 8, 16, 32)
NEW, PROMPT = 64, [1] * 16
RESULTS = Path(__file__).parent / "results" / "any-order-speed.json"
SHAPES = {"260K": (512, 64, 172, 5, 8, 4), "25M": (8192, 512, 1376, 8, 8, 4)}
"""Vocabulary, hidden size, intermediate size, layers, heads, key-value heads."""


def network(shape: Sequence[int]) -> Llama:
    """Random weights, all modes."""
    torch.manual_seed(0)
    vocabulary, hidden, intermediate, layers, heads, kv_heads = shape
    config = ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, rotary=Rotary(theta=10_000.0),
    )  # fmt: skip
    return adapt(Llama(config), (LEFT_TO_RIGHT, ANY_ORDER)).eval()


def seconds(write: Callable[[], object]) -> float:
    """Of one run."""
    started = time.perf_counter()
    write()
    return time.perf_counter() - started


def measure(model: Llama, repeats: int) -> dict[str, float]:
    """Median seconds of each candidate."""
    sampling = Sampling()

    def left_to_right() -> object:
        return list(
            left_to_right_steps(
                model, [PROMPT], max_new_tokens=NEW, sampling=sampling, stop=None, use_cache=True, sample_ids=[0],
                compile=False,
            )
        )  # fmt: skip

    def in_order(order: LeftToRight | Random | MostConfident) -> Callable[[], object]:
        return lambda: list(
            any_order_steps(model, [continuation(PROMPT, NEW)], order, sampling=sampling, sample_ids=[0])
        )

    candidates: dict[str, Callable[[], object]] = {"left to right": left_to_right}
    candidates |= {f"groups of {size}": in_order(LeftToRight(size=size)) for size in SIZES}
    candidates |= {"random": in_order(Random()), "most confident": in_order(MostConfident())}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, write in candidates.items():
            taken = seconds(write)
            if turn:  # the first warms up
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def draw(found: dict[str, dict[str, float]], file: Path) -> None:
    """Tokens per second against the size of groups."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, medians in found.items():
        [line] = axes.plot(SIZES, [NEW / medians[f"groups of {size}"] for size in SIZES], marker="o", label=name)
        axes.axhline(NEW / medians["left to right"], color=line.get_color(), linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set_xlabel("tokens of a group")
    axes.set_ylabel("tokens/s")
    axes.legend(title="dotted: left to right without query rows")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, keeps the numbers and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="file for the plot")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {name: measure(network(shape), options.repeats) for name, shape in SHAPES.items()}
    names = list(next(iter(found.values())))
    print(f"| {NEW} tokens after {len(PROMPT)} | {' | '.join(f'{name}: tokens/s' for name in found)} | "
          f"{' | '.join(f'{name}: a pass, left to right = 1' for name in found)} |")  # fmt: skip
    print(f"|---|{'---:|' * (2 * len(found))}")
    for name in names:
        size = int(name.rpartition(" ")[2]) if name.startswith("groups") else 1
        rates = [f"{NEW / medians[name]:.0f}" for medians in found.values()]
        passes = [f"{medians[name] * size / medians['left to right']:.2f}" for medians in found.values()]
        print(f"| {name} | {' | '.join(rates)} | {' | '.join(passes)} |")
    RESULTS.write_text(json.dumps({"new tokens": NEW, "median seconds": found}, indent=1) + "\n", encoding="utf-8")
    if options.output is not None:
        draw(found, options.output)


if __name__ == "__main__":
    main()
