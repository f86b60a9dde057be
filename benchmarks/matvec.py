"""Reading a matrix once: PyTorch's projection of one row against the compiled loop of `anyorder.model.linear`.

    python benchmarks/matvec.py

Prints the bytes of weights read per second, both ways taking turns. Matrices are those of a network of 125 million
weights, enough of them that no cache holds them.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.inspection.speed import bandwidth, machine
from anyorder.model.linear import one_row

MATRICES, OUTPUTS, INPUTS = 40, 2048, 768


def library(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """What `nn.Linear` does."""
    return [F.linear(x, weight) for weight in weights]


@torch.compile
def loops(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """What `anyorder.model.linear.Linear` does in a compiled step."""
    return [one_row(x, weight, None) for weight in weights]


def main() -> None:
    """Measure and print."""
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"memory bandwidth {bandwidth(torch.device('cpu')) / 1e9:.1f} GB/s")
    for dtype in (torch.float32, torch.bfloat16):
        weights = [torch.randn(OUTPUTS, INPUTS, dtype=dtype) for _ in range(MATRICES)]
        x = torch.randn(1, INPUTS, dtype=dtype)
        seconds: dict[str, list[float]] = {"library": [], "loops": []}
        loops(x, weights)
        for _ in range(20):
            for name, way in (("library", library), ("loops", loops)):
                started = time.perf_counter()
                way(x, weights)
                seconds[name].append(time.perf_counter() - started)
        read = sum(weight.nbytes for weight in weights)
        for name, runs in seconds.items():
            print(f"{dtype!s:15} {name:8} {read / statistics.median(runs) / 1e9:6.1f} GB/s")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
