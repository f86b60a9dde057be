"""Chunks and layers without rotary embedding against full attention, beyond the trained length: loss and memory.

    OMP_NUM_THREADS=1 python benchmarks/long_context.py tinystories.txt

Two networks that differ in their layers alone are trained on the same rows in the same order: one whose layers all
see the whole text, with rotary embeddings; and one that is mixed as Llama 4 is, of each four layers three that see
their own chunk, and one that sees all and has no rotary embedding. Both then read text that was held back, in rows
eight times as long as any that was learnt; the mixed one also with queries that grow with their position (Llama 4's
temperature), which needs no training. Each is repeated with other seeds. Memory is counted for a cache, and as the
peak of a pass. Prints tables, writes benchmarks/results/long-context.json and draws docs/images/long-context.png;
`--draw` draws anew what was written.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from stories import BLUE, GREEN, ORANGE, Stories, draw_runs, interval, losses, parameters, train

from anyorder.inspection.speed import machine
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import Rotary
from anyorder.training import Training
from anyorder.visibility import causal

ROOT = Path(__file__).parent.parent
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "long-context.json", ROOT / "docs" / "images" / "long-context.png"

FULL, MIXED, GROWING = "full attention, rotary", "chunks and NoPE", "chunks and NoPE, queries grow"
COLOURS = {FULL: BLUE, MIXED: ORANGE, GROWING: GREEN}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, read, print tables, write them down, draw."""
    options = _options(arguments)
    if not options.draw:
        for found in study(options):
            options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(options.output.read_text(encoding="utf-8"))
    report(found)
    draw(found, options.picture)


def study(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train both networks with each seed, and read long rows with them; yield what was found so far after each."""
    stories = Stories(options.text, options.vocabulary)
    learnt_NL = stories.rows(stories.learnt, options.length)
    held_NL = stories.rows(stories.held_back, options.length * options.times)[: options.held_rows]
    configs = networks(options)
    runs: dict[str, list[list[float]]] = {name: [] for name in COLOURS}
    given = {name: str(value) for name, value in vars(options).items() if name not in ("text", "output", "picture")}
    found = {
        "machine": machine(), "options": given, "rows held back": len(held_NL), "bucket": options.bucket,
        "trained length": options.length, "runs": runs,
        "parameters": {name: parameters(config) for name, config in configs.items()},
        "memory": {name: memory(configs[name], options.memory) for name in (FULL, MIXED)},
    }  # fmt: skip
    for seed in range(options.seeds):
        training = Training(
            steps=options.steps, batch_size=options.batch, learning_rate=options.learning_rate, seed=seed,
            log_every=options.steps,
        )  # fmt: skip
        trained = {name: train(configs[name], learnt_NL, training)[0] for name in (FULL, MIXED)}
        trained[GROWING] = with_config(trained[MIXED], configs[GROWING])
        for name, model in trained.items():
            by_position = losses(model, held_NL, max(1, options.batch // options.times)).mean(0)
            runs[name].append(in_buckets(by_position, options.bucket))
            print(f"{name}, seed {seed}: {runs[name][-1][0]:.3f} to {runs[name][-1][-1]:.3f}", flush=True)
        yield found


def networks(options: argparse.Namespace) -> dict[str, ModelConfig]:
    """The networks; the last has the weights of the one before it."""
    full = ModelConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.length,
        rotary=Rotary(theta=10_000.0),
        tie_word_embeddings=True,
    )

    def mixed(scale: QueryScale | None) -> ModelConfig:
        local, wide = LayerKind(chunk=options.chunk), LayerKind(rotary=False, query_scale=scale)
        return full.replace(layers=tuple(local if (at + 1) % 4 else wide for at in range(options.layers)))

    growing = QueryScale(strength=options.strength, period=options.length)
    return {FULL: full, MIXED: mixed(None), GROWING: mixed(growing)}


def with_config(model: Llama, config: ModelConfig) -> Llama:
    """The same weights in a network of another description."""
    other = Llama(config)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return other.eval()


def in_buckets(by_position: torch.Tensor, size: int) -> list[float]:
    """Means over `size` neighbouring positions; the first token of a row, which nothing predicts, is left out."""
    return [float(part.mean()) for part in by_position.split(size)]


def memory(config: ModelConfig, lengths: Sequence[int]) -> list[dict[str, int]]:
    """For texts of several lengths: bytes of a cache, of its part that the next token sees, and the peak of a pass."""
    torch.manual_seed(0)
    model = Llama(config).eval()
    lines = []
    for length in lengths:
        cache = model.new_cache(1, length)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        position = torch.arange(length).unsqueeze(0)
        last, every = {"position": position[:, -1:]}, {"position": position}
        seen = {
            kind: (causal() if kind.narrowing is None else causal() & kind.narrowing).mask(last, every).sum()
            for kind in config.kinds
        }
        one_key = held // (len(cache.layers) * (length + 1))
        reads = one_key * sum(int(seen[kind]) for kind in config.layers)
        lines.append({"length": length, "cache": held, "seen": reads, "peak": peak(model, length)})
    return lines


@torch.no_grad()
def peak(model: Llama, length: int) -> int:
    """Bytes that a pass over a text holds at most, beside the weights; logits of the last row alone."""
    ids = torch.zeros(1, length, dtype=torch.long)

    def read() -> None:
        views = model.prepare(causal(), {"position": torch.arange(length).unsqueeze(0)})
        model.logits(model.hidden(ids, views)[:, -1])

    read()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        read()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def report(found: dict[str, Any]) -> None:
    """Print tables."""
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    bucket, length = found["bucket"], found["trained length"]
    starts = [at * bucket for at in range(len(found["runs"][FULL][0]))]
    picked = [at for at, start in enumerate(starts) if start % length == length - bucket or start == 0]
    print(f"\nnats a token by position; trained on {length} tokens")
    print(f"\n| positions | {' | '.join(COLOURS)} | full less chunks, of pairs |\n|---|{'---|' * (len(COLOURS) + 1)}")
    for at in picked:
        cells = [str(interval([run[at] for run in found["runs"][name]])) for name in COLOURS]
        pairs = zip(found["runs"][FULL], found["runs"][MIXED], strict=True)
        cells.append(str(interval([full[at] - mixed[at] for full, mixed in pairs])))
        print(f"| {starts[at]} to {starts[at] + bucket - 1} | {' | '.join(cells)} |")
    print(
        "\n| tokens | network | cache, kB | of which the next token sees | peak of a pass, MB |\n|---|---|---|---|---|"
    )
    for lines in zip(*found["memory"].values(), strict=True):
        for name, line in zip(found["memory"], lines, strict=True):
            numbers = f"{line['cache'] / 1e3:,.0f} | {line['seen'] / line['cache']:.0%} | {line['peak'] / 1e6:.1f}"
            print(f"| {line['length']} | {name} | {numbers} |")


def draw(found: dict[str, Any], file: Path) -> None:
    """Loss by position, and what a token reads of the cache by length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    by_position, by_length = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_losses(by_position, found)
    for name, lines in found["memory"].items():
        lengths = [line["length"] for line in lines]
        for key, style, label in (("seen", "-", "the next token sees"), ("peak", "--", "peak of a pass")):
            sizes = [line[key] / 1e6 for line in lines]
            by_length.plot(lengths, sizes, style, marker="o", markersize=3, color=COLOURS[name], linewidth=1.5)
            place, offset, side = (-1, (-14, 5), "right") if key == "peak" else (0, (6, -9), "left")
            by_length.annotate(
                label, (lengths[place], sizes[place]), xytext=offset, textcoords="offset points", ha=side,
                color=COLOURS[name], fontsize=8,
            )  # fmt: skip
    by_length.set_xscale("log", base=2)
    by_length.set_yscale("log")
    by_length.xaxis.set_major_formatter("{x:g}")
    by_length.set_xlabel("tokens of the text")
    by_length.set_ylabel("MB")
    by_length.set_title("memory: keys and values, and a pass", fontsize=10)
    by_length.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="png", dpi=130)


def _draw_losses(axes: Any, found: dict[str, Any]) -> None:
    bucket, length = found["bucket"], found["trained length"]
    for name, colour in COLOURS.items():
        runs = found["runs"][name]
        at = [(index + 0.5) * bucket for index in range(len(runs[0]))]
        means = draw_runs(axes, at, runs, colour, "--" if name == GROWING else "-")
        place, offset, side = {FULL: (2, -18, "left"), MIXED: (2, 14, "left"), GROWING: (-1, -24, "right")}[name]
        axes.annotate(
            name, (at[place], means[place]), xytext=(0, offset), textcoords="offset points", ha=side, color=colour
        )
    axes.axvline(length, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        "trained length", (length, 1), xycoords=("data", "axes fraction"), xytext=(4, -10), textcoords="offset points",
        color="grey", fontsize=8,
    )  # fmt: skip
    axes.set_xlabel("position in the text")
    axes.set_ylabel("loss held back, nats per token")
    axes.set_title("loss by position", fontsize=10)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="stories, in one file")
    for name, value, meaning in (
        ("vocabulary", 512, "tokens of the tokenizer"), ("hidden", 96, "width of a row"),
        ("layers", 4, "of the network"), ("heads", 3, "of a layer"), ("length", 128, "tokens of a row that is learnt"),
        ("chunk", 32, "tokens of a chunk"), ("times", 8, "times the trained length is read"),
        ("bucket", 64, "positions in each mean"), ("batch", 8, "rows of a step"), ("steps", 250, "of the optimizer"),
        ("seeds", 3, "pairs of networks"), ("held_rows", 100, "long rows held back"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=meaning)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--strength", type=float, default=0.1, help="of queries that grow")
    parser.add_argument("--memory", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096], help="lengths")
    parser.add_argument("--draw", action="store_true", help="train nothing: draw the results that were written")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the numbers are written")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the plot is drawn")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
