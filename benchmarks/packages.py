"""Writing with packages of layers against writing without, in each mode: processor seconds, taking turns.

Run: OMP_NUM_THREADS=1 python benchmarks/packages.py [stories MODEL ...] [--new 48] [--repeats 5]

Each network writes one text in each of its modes, with the packages that `anyorder compile` makes of it; those that are
missing are made first. Tokens are compared before times. Writes benchmarks/results/packages.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import anyorder
from anyorder import DiffusionSampler
from anyorder.inspection.speed import machine

RESULTS = Path(__file__).parent / "results"
PROMPT = "Once upon a time, there was a little girl"


def orders(new: int) -> dict[str, dict[str, Any]]:
    """Of each mode, orders by what they are called."""
    dual = DiffusionSampler.preset("llada", steps=new // 2, block_length=new // 2, cache="dual")
    return {
        "left-to-right": {"left to right": "left-to-right"},
        "any-order": {"random order": "random", "groups of 4": "groups:4"},
        "blocks": {"blocks": "blocks"},
        "diffusion": {"diffusion, dual cache": dual, "diffusion, no cache": "diffusion"},
    }


def measure(path: str, new: int, repeats: int) -> list[dict[str, Any]]:
    """Medians of a network in each of its modes."""
    model, tokenizer = anyorder.load(path, dtype="float32", device="cpu")
    # Of a small network `compile=True` would compile the whole step from left to right instead.
    packaged = model.with_compiled_layers(torch.get_num_threads(), making=True)
    rows = []
    for mode in model.config.modes:
        for name, order in orders(new).get(mode.name, {}).items():

            def write(network: Any, how: Any, order: Any = order) -> list[int]:
                out = anyorder.generate(network, tokenizer, PROMPT, order=order, max_new_tokens=new, compile=how)
                return list(out.token_ids)

            ways = {"eager": (model, False), "packages": (packaged, "auto")}
            assert write(*ways["eager"]) == write(*ways["packages"]), (path, name)
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(repeats):
                for way, given in ways.items():
                    started = time.process_time()
                    write(*given)
                    seconds[way].append(time.process_time() - started)
            medians = {way: statistics.median(values) for way, values in seconds.items()}
            rows.append({"network": Path(path).stem, "order": name, **medians})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["stories"])
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for path in options.models for row in measure(path, options.new, options.repeats)]
    kept = {"machine": machine(), "new": options.new, "clock": "processor", "rows": rows}
    RESULTS.joinpath("packages.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
