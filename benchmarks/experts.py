"""The cost of a mixture of experts, beside a dense layer of equal active width and transformers' Llama 4.

    OMP_NUM_THREADS=1 python benchmarks/experts.py

Forward passes of one layer, 8 experts of which 2 read each row, against a dense feed-forward network as wide as these
two together; transformers' Llama 4 layer of the same experts computes all of them. For a batch of 8 texts of 256
tokens, and for one token, as in decoding. Candidates take turns in one run; medians of processor seconds are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from anyorder.inspection.speed import machine
from anyorder.model.experts import Experts, MixtureOfExperts
from anyorder.model.feed_forward import FeedForward

DENSE = "dense, equal active width"


def main(arguments: Sequence[str] | None = None) -> list[tuple[str, str, float, float]]:
    """Measure and print a table.

    Returns:
        For each line: rows, candidate, median in ms, ratio to the dense layer.
    """
    options = _options(arguments)
    torch.manual_seed(0)
    candidates = {name: _drawn(module) for name, module in layers(options).items()}
    print(f"hidden {options.hidden}, {options.experts} experts of {options.width}, {options.chosen} a row; float32")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("\n| rows | layer | median, ms | ratio to dense |\n|---|---|---|---|")
    lines = []
    for batch, length in ((options.batch, options.length), (1, 1)):
        rows = torch.randn(batch, length, options.hidden)
        seconds = take_turns(candidates, rows, options.repeats, calls=max(1, 256 // (batch * length)))
        unit = statistics.median(seconds[DENSE])
        for name, measured in seconds.items():
            median = statistics.median(measured)
            lines.append((f"{batch} x {length}", name, 1000 * median, median / unit))
            print(f"| {batch} x {length} | {name} | {1000 * median:.3f} | {median / unit:.2f} |")
    return lines


def layers(options: argparse.Namespace) -> dict[str, nn.Module]:
    """The candidates, by what they are called."""
    number, chosen, width = options.experts, options.chosen, options.width
    theirs = Llama4TextConfig(
        hidden_size=options.hidden, intermediate_size=width, num_local_experts=number, num_experts_per_tok=chosen
    )
    ours = Experts(
        number=number, chosen=chosen, width=width, score="sigmoid", weighted="input", shared_width=width
    )  # fmt: skip
    return {
        DENSE: FeedForward(options.hidden, chosen * width),
        "experts": MixtureOfExperts(Experts(number=number, chosen=chosen, width=width, normalise=True), options.hidden),
        "experts as Llama 4's, with a shared one": MixtureOfExperts(ours, options.hidden),
        "transformers' Llama 4": Llama4TextMoe(theirs),
    }


def _drawn(module: nn.Module) -> nn.Module:
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.02)
    return module.eval()


@torch.no_grad()
def take_turns(
    candidates: dict[str, nn.Module], rows: Tensor, repeats: int, calls: int
) -> dict[str, list[float]]:  # fmt: skip
    """Processor seconds of a call of each candidate, `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for module in candidates.values():
        module(rows)
    for _ in range(repeats):
        for name, module in candidates.items():
            seconds[name].append(_seconds(lambda module=module: module(rows), calls))
    return seconds


def _seconds(call: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - started) / calls


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("hidden", 512), ("width", 704), ("experts", 8), ("chosen", 2), ("batch", 8), ("length", 256), ("repeats", 9),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
