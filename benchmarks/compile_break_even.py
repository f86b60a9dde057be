"""From how many tokens on compiling the one-token step pays, by the processor's own time.

    OMP_NUM_THREADS=1 python benchmarks/compile_break_even.py --output benchmarks/results/compile-break-even.json

Each number comes from a process of its own: compiled in an empty folder, compiled once more with what that left on
disk, and not compiled. The time is that of the process and of the compiler that it starts, so that other work on the
machine does not count. Networks have random weights and no end token, and write greedily.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.inspection.speed import SIZES, machine
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary

NETWORKS: dict[str, ModelConfig] = SIZES | {
    "15M": ModelConfig(
        vocab_size=32_000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=2048, tie_word_embeddings=True, rotary=Rotary(theta=10_000.0),
    ),
    "135M, 30 layers": ModelConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, rotary=Rotary(theta=100_000.0),
    ),
}  # fmt: skip

FEW = 2
"""New tokens of the run that compiles: the first one is written by the pass over the prompt."""


def processor_seconds() -> float:
    """Of this process and of those that it has waited for, such as the compiler's."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def seconds_of_one(size: str, compiles: bool, dtype: str, tokens: int, texts: int) -> dict[str, float]:
    """What this process measures: the first few steps, compiling included, and each step afterwards."""
    torch.manual_seed(0)
    model = Llama(NETWORKS[size]).to(getattr(torch, dtype)).eval()
    prompts = [list(range(3 + text, 19)) for text in range(texts)]
    spent = []
    for new_tokens in (FEW, tokens):
        started = processor_seconds()
        sample_ids = range(len(prompts))
        list(left_to_right_steps(model, prompts, sample_ids=sample_ids, max_new_tokens=new_tokens, compile=compiles))
        spent.append(processor_seconds() - started)
    return {"first": spent[0], "step": spent[1] / tokens}


def in_a_process(compiles: bool, options: argparse.Namespace, size: str, folder: str) -> dict[str, float]:
    """The same, measured in a new process that keeps compiled code in this folder."""
    numbers = ["--tokens", str(options.tokens), "--texts", str(options.texts)]
    words = [sys.executable, __file__, "--one", size, "--dtype", options.dtype, *numbers]
    kept = {"TORCHINDUCTOR_CACHE_DIR": folder, "XDG_CACHE_HOME": folder}  # of whole steps, and of layers
    environment = os.environ | kept | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(
        [*words, "--compile"] if compiles else words, env=environment, check=True, capture_output=True, text=True
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(seconds_of_one(options.one, options.compile, options.dtype, options.tokens, options.texts)))
        return
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            eager = in_a_process(False, options, size, folder)
            anew = in_a_process(True, options, size, folder)
            again = in_a_process(True, options, size, folder)
        saved = eager["step"] - again["step"]
        config = NETWORKS[size]
        model_bytes = sum(weight.nbytes for weight in Llama(config).to(getattr(torch, options.dtype)).parameters())
        row = {
            "network": size, "dtype": options.dtype, "texts": options.texts, "layers": config.num_hidden_layers,
            "mebibytes": model_bytes / 2**20,
            "eager_ms": 1000 * eager["step"], "compiled_ms": 1000 * again["step"],
            "compile_s": anew["first"], "from_disk_s": again["first"],
            "break_even": anew["first"] / saved if saved > 0 else None,
            "break_even_from_disk": again["first"] / saved if saved > 0 else None,
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.output is not None:
        kept = {"machine": machine(), "clock": "processor", "rows": rows}
        options.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
