"""What an answer to several phrasings costs: fused, as an ensemble of separate runs, and the naive way.

Run: python benchmarks/fusion.py --output docs/images/fusion-cost.png

All candidates ask the same network with random weights the same question, and take turns; medians are compared.

* fused: `method="attention"`, the prefix read once, all phrasings as one batch, their keys joined.
* ensemble here: `method="logit-mean"` in the same engine, the prefix read once, a row for each phrasing.
* ensemble of separate runs: each phrasing continued by a cached run of its own; what it costs to make one distribution
  of them is not even counted.
* masked, no cache: one sequence with the prefix once, read again for each token.
* naive: one sequence with the prefix before every phrasing, read again for each token. Every pass costs nearly the
  same, so only the first few are timed, and counted for all.

The result's JSON goes to benchmarks/results.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import anyorder
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.inspection.speed import SIZES, machine
from anyorder.model.llama import Llama

RESULTS = Path(__file__).parent / "results"

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""What counts: time on the wall, or that of the processor, of all threads, where the machine has other work."""

TARGETS = {"ensemble of separate runs": 2.5, "naive": 15.0}
"""How many times as long these shall take at least as the fused answer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints tables, draws, and writes the numbers down."""
    options = _options(arguments)
    torch.manual_seed(0)
    model = Llama(SIZES[options.size]).eval()
    seconds = take_turns(candidates(model, options.phrasings, options), options.repeats, CLOCKS[options.clock])
    fused = seconds["fused"]
    print(
        f"{options.size} on {machine()['device']}, {torch.get_num_threads()} threads: {options.phrasings} phrasings of "
        f"{options.segment} tokens, a prefix of {options.prefix}, a suffix of {options.suffix}, {options.new} new; "
        f"{options.clock} time, medians of {options.repeats}\n"
    )
    print("| way | seconds | times fused | target |\n|---|---|---|---|")
    for name, taken in seconds.items():
        target = f">= {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"| {name} | {taken:.2f} | {taken / fused:.1f} | {target} |")

    against: dict[int, dict[str, float]] = {}
    for count in options.against:
        ways = candidates(model, count, options)
        cheap = {name: ways[name] for name in ("fused", "ensemble here")}
        against[count] = take_turns(cheap, options.repeats_against, CLOCKS[options.clock])
        # Separate runs take turns with nothing: N of them take N times as long as one.
        against[count]["ensemble of separate runs"] = count * seconds["one run"]
    names = list(against[options.against[0]])
    print(f"\n| phrasings | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for count, of_count in against.items():
        print(f"| {count} | {' | '.join(f'{of_count[name]:.2f}' for name in names)} |")

    record = {"options": vars(options) | {"output": str(options.output)}, "machine": machine(), "seconds": seconds}
    if not options.no_record:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"fusion-{options.size}-cpu.json"
        file.write_text(json.dumps(record | {"against": against}, indent=2) + "\n", encoding="utf-8")
        print(f"\nwrote {file}")
    if options.output is not None:
        draw(against, options.output)
        print(f"drew {options.output}")


class Way(NamedTuple):
    """A way to an answer: what is timed, and how many times as long the whole answer takes."""

    run: Callable[[], object]
    times: float = 1.0


def candidates(model: Llama, count: int, options: argparse.Namespace) -> dict[str, Way]:
    """The ways to an answer to so many phrasings."""
    drawn = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(model.config.vocab_size, (length,), generator=drawn).tolist())

    prefix, suffix = tokens(options.prefix), tokens(options.suffix)
    segments = tuple(tokens(options.segment) for _ in range(count))
    prompts = [[*prefix, *segment, *suffix] for segment in segments]

    some = min(options.naive_new, options.new)

    def fused(method: str) -> Way:
        return Way(
            lambda: anyorder.fuse(
                model, None, segments, prefix=prefix, suffix=suffix, method=method, max_new_tokens=options.new
            )
        )

    def uncached(segments: Sequence[Sequence[int]], prefix: Sequence[int]) -> Way:
        run = functools.partial(
            anyorder.fuse, model, None, segments, prefix=prefix, suffix=suffix, positions="running", use_cache=False,
            max_new_tokens=some,
        )  # fmt: skip
        return Way(run, options.new / some)

    def separate(asked: Sequence[Sequence[int]]) -> Way:
        def write(prompt: Sequence[int]) -> None:
            list(left_to_right_steps(model, [prompt], sample_ids=[0], max_new_tokens=options.new, compile=False))

        return Way(lambda: [write(prompt) for prompt in asked])

    return {
        "fused": fused("attention"),
        "one run": separate(prompts[:1]),
        "ensemble here": fused("logit-mean"),
        "ensemble of separate runs": separate(prompts),
        "masked, no cache": uncached(segments, prefix),
        "naive": uncached([prefix + segment for segment in segments], ()),
    }


def take_turns(ways: Mapping[str, Way], repeats: int, now: Callable[[], float]) -> dict[str, float]:
    """Median seconds that an answer takes in each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = now()
            way.run()
            seconds[name].append((now() - started) * way.times)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def draw(against: Mapping[int, Mapping[str, float]], file: Path) -> None:
    """Cost against the number of phrasings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for name in next(iter(against.values())):
        axes.plot(list(against), [of_count[name] for of_count in against.values()], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(list(against))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("phrasings")
    axes.set_ylabel("seconds for an answer")
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="125M")
    parser.add_argument("--phrasings", type=int, default=5)
    parser.add_argument("--prefix", type=int, default=300, help="tokens before each phrasing")
    parser.add_argument("--segment", type=int, default=20, help="tokens of each phrasing")
    parser.add_argument("--suffix", type=int, default=4, help="tokens behind them")
    parser.add_argument("--new", type=int, default=20, help="tokens to write")
    parser.add_argument("--naive_new", type=int, default=3, help="of which so many are timed without a cache")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what counts: see CLOCKS")
    parser.add_argument("--against", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="phrasings of the plot")
    parser.add_argument("--repeats_against", type=int, default=1)
    parser.add_argument("--output", type=Path, help="picture to draw, such as fusion.png")
    parser.add_argument("--no_record", action="store_true", help="write no JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
