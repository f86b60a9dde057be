"""Time per sample against the number of groups that share a key-value head, drawn as in Ainslie et al. 2023, figure 6.

Run: python benchmarks/head_sharing.py --output head_sharing.png

One network with random weights, in all versions from MHA (as many groups as heads) to MQA (one). Each sample is a
prompt that is read and a text that is written, several samples in a batch. The versions take turns, and medians are
compared. On a CPU the time goes into reading weights; for the time to depend on the groups, the cache must weigh
something beside them: long prompts, large batches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from anyorder.checkpoints.heads import share_heads
from anyorder.checkpoints.weights import resolve_device, resolve_dtype
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.inspection.head_sharing import cache_bytes, parameter_count, versions
from anyorder.inspection.speed import CLOCKS
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and draws it."""
    options = _options(arguments)
    device, dtype = resolve_device(options.device), resolve_dtype(options.dtype)
    config = ModelConfig(
        vocab_size=1000,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.prompt + options.new,
        rotary=Rotary(theta=10_000.0),
    )
    torch.manual_seed(0)
    mha = Llama(config).to(device, dtype).eval()
    configs = versions(config)
    models = [share_heads(mha, version.num_key_value_heads, "first") for version in configs]
    clock = CLOCKS[options.clock]
    seconds = time_samples(models, options.batch, options.prompt, options.new, options.repeats, clock)

    print(
        f"{options.layers} layers of width {options.hidden} with {options.heads} heads, {options.dtype} on {device}, "
        f"{torch.get_num_threads()} threads; {options.batch} samples at a time, each {options.prompt} tokens read and "
        f"{options.new} written; median of {options.repeats}, {options.clock} time"
    )
    print(f"{'groups':>6}  {'layout':6}  {'parameters':>12}  {'cache/token':>11}  {'ms/sample':>9}  {'of MHA':>6}")
    for version, taken in zip(configs, seconds, strict=True):
        print(
            f"{version.num_key_value_heads:6}  {version.head_layout:6}  {parameter_count(version):12,}  "
            f"{cache_bytes(version, dtype):11,}  {1000 * taken:9.1f}  {taken / seconds[0]:6.2f}"
        )
    if options.output is not None:
        draw(configs, seconds, options.output)
        print(f"drew {options.output}")


def time_samples(
    models: Sequence[Llama], batch: int, prompt_length: int, new_tokens: int, repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:  # fmt: skip
    """Median seconds per sample of each network, after one run that is not counted."""
    vocabulary = models[0].config.vocab_size
    prompts = torch.randint(vocabulary, (batch, prompt_length), generator=torch.Generator().manual_seed(0)).tolist()
    seconds: list[list[float]] = [[] for _ in models]
    for repeat in range(repeats + 1):
        for model, times in zip(models, seconds, strict=True):
            started = clock()
            sample_ids = range(len(prompts))
            list(left_to_right_steps(model, prompts, sample_ids=sample_ids, max_new_tokens=new_tokens, compile=False))
            times += [(clock() - started) / batch] if repeat > 0 else []
    return [statistics.median(times) for times in seconds]


def draw(configs: Sequence[ModelConfig], seconds: Sequence[float], file: Path) -> None:
    """The curve, with the lines of MHA and MQA."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([config.num_key_value_heads for config in configs], [1000 * taken for taken in seconds], "o-")
    for name, taken in (("MHA", seconds[0]), ("MQA", seconds[-1])):
        axes.axhline(1000 * taken, linestyle=":", color="gray")
        axes.annotate(name, (1, 1000 * taken), textcoords="offset points", xytext=(2, 3), color="gray")
    axes.set_xscale("log", base=2)
    axes.set_xticks([config.num_key_value_heads for config in configs])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 1200 * max(seconds))
    axes.set_xlabel("groups (key-value heads)")
    axes.set_ylabel("time per sample (ms)")
    figure.savefig(file, dpi=150)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=256, help="width of the network")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="samples at a time")
    parser.add_argument("--prompt", type=int, default=256, help="tokens that are read for each sample")
    parser.add_argument("--new", type=int, default=32, help="tokens that are written for each sample")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a busy machine, on one thread")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="picture to draw, such as head_sharing.png")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
