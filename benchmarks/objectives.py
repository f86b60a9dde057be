"""The cost of a training step of each objective, beside XLNet's two streams in transformers.

    python benchmarks/objectives.py

A step is making the training inputs, the forward and the backward pass, without the optimizer, which costs all the
same. All candidates take turns in one run; medians are compared, as a ratio to our own step from left to right.
Prints a table and writes benchmarks/results/objectives-cpu.json. Where others use the machine as well, `--clock cpu`
counts the seconds that the processor spent on the step, with OMP_NUM_THREADS=1, instead of those that passed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import XLNetConfig, XLNetLMHeadModel

from anyorder.checkpoints.adapt import adapt
from anyorder.inspection.speed import machine
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.model.rope import Rotary
from anyorder.objectives import (
    Autoregressive,
    Batch,
    BlockDiffusion,
    MaskedDiffusion,
    Objective,
    Permutation,
    Stratified,
    summed_loss,
)

RESULTS = Path(__file__).parent / "results" / "objectives-cpu.json"

AR = "left to right"

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, writes it down."""
    options = _options(arguments)
    torch.manual_seed(0)
    candidates = {**our_steps(options), **xlnet_steps(options)}
    shape = f"hidden {options.hidden}, {options.layers} layers, {options.heads} heads, vocabulary {options.vocabulary}"
    print(f"{shape}, {options.length} tokens, batch {options.batch}; {options.clock} clock")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("\n| precision | step | median, ms | ratio to left to right | lowest, highest |\n|---|---|---|---|---|")
    rows = []
    for precision in ("float32", "bfloat16"):
        seconds = take_turns(candidates, precision, options.repeats, CLOCKS[options.clock])
        unit = statistics.median(seconds[AR])
        for name, times in seconds.items():
            # Each turn's own ratio as well, which shows how much the machine's pace swung during the run.
            ratios = [one / other for one, other in zip(times, seconds[AR], strict=True)]
            row = {
                "precision": precision, "step": name, "milliseconds": 1000 * statistics.median(times),
                "ratio": statistics.median(times) / unit, "lowest": min(ratios), "highest": max(ratios),
            }  # fmt: skip
            rows.append(row)
            print(
                f"| {precision} | {name} | {row['milliseconds']:.0f} | {row['ratio']:.2f} | {row['lowest']:.2f}, "
                f"{row['highest']:.2f} |",
                flush=True,
            )
    options.output.parent.mkdir(exist_ok=True)
    written = {
        "machine": machine(),
        "clock": options.clock,
        "shape": f"{shape}, {options.length} tokens, batch {options.batch}",
        "rows": rows,
    }
    options.output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def take_turns(
    candidates: dict[str, Callable[[int], None]], precision: str, repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each step, after one that is not counted; every other round runs backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        names = list(candidates) if repeat % 2 else list(candidates)[::-1]
        for name in names:
            started = clock()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                candidates[name](repeat)
            if repeat > 0:
                seconds[name].append(clock() - started)
    return seconds


def our_steps(options: argparse.Namespace) -> dict[str, Callable[[int], None]]:
    """A step of each of our objectives, on one network."""
    config = ModelConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=8 * options.hidden // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.length,
        rotary=Rotary(theta=10_000.0),
    )
    model = adapt(Llama(config), (LEFT_TO_RIGHT, ANY_ORDER)).train()
    mask = options.vocabulary - 1
    times = Stratified(strata=options.batch)  # so that steps differ little in how much they predict
    objectives: dict[str, Objective] = {
        AR: Autoregressive(),
        "masked diffusion": MaskedDiffusion(mask_token_id=mask, times=times, random_length=0.0),
        "two streams, K = L/6": Permutation(predicted=1 / 6),
        "two streams, K = L": Permutation(),
        "block diffusion": BlockDiffusion(mask_token_id=mask, block_length=32, times=times),
    }

    def step(objective: Objective) -> Callable[[int], None]:
        def run(repeat: int) -> None:
            ids = torch.randint(mask, (options.batch, options.length)).tolist()
            batch = Batch.of(ids, first_sample=repeat * options.batch, step=repeat)
            inputs = objective.inputs(batch, 0)
            (summed_loss(model, inputs) / inputs.count).backward()
            model.zero_grad()

        return run

    return {name: step(objective) for name, objective in objectives.items()}


def xlnet_steps(options: argparse.Namespace) -> dict[str, Callable[[int], None]]:
    """XLNet, its feed-forward part of as many weights: steps with a sixth of the tokens as targets, and with all."""
    config = XLNetConfig(
        vocab_size=options.vocabulary, d_model=options.hidden, n_layer=options.layers, n_head=options.heads,
        d_inner=4 * options.hidden, dropout=0.0, summary_last_dropout=0.0,
    )  # fmt: skip
    model = XLNetLMHeadModel(config).train()
    length, batch = options.length, options.batch

    def step(targets: int) -> Callable[[int], None]:
        def run(repeat: int) -> None:
            ids_BL = torch.randint(options.vocabulary - 1, (batch, length))
            order_BL = torch.stack([torch.randperm(length) for _ in range(batch)])
            perm_mask, mapping = xlnet_masks(order_BL, targets)
            labels_BK = ids_BL.gather(1, order_BL[:, -targets:])
            model(ids_BL, perm_mask=perm_mask, target_mapping=mapping, labels=labels_BK).loss.backward()
            model.zero_grad()

        return run

    return {"XLNet, K = L/6": step(-(-length // 6)), "XLNet, K = L": step(length)}


def xlnet_masks(order_BL: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """Its `perm_mask` `[batch, row, key]`, 1 where the key is hidden, and `target_mapping` `[batch, targets, row]`."""
    rank_BL = order_BL.argsort(1)
    hidden_BLL = (rank_BL.unsqueeze(1) >= rank_BL.unsqueeze(2)).float()
    mapping_BKL = torch.nn.functional.one_hot(order_BL[:, -targets:], order_BL.shape[1]).float()
    return hidden_BLL, mapping_BKL


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="which seconds are counted")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the numbers are written")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
