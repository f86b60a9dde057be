"""What data cost beside training: preparing them once, opening them again, and a batch against an optimizer step.

    python benchmarks/data.py

The texts are Python's own, so any machine can repeat it. Batches are loaded by the process that trains, between its
steps, as transformers' `Trainer` does by default; steps and batches take turns, and medians are compared. The network
has 6 layers of 384, a vocabulary of 8000 and rows of 256 tokens, 8 of them in a batch, in float32.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from anyorder.data import DataConfig, collate, prepare, python_texts, report_of, train_tokenizer
from anyorder.inspection.speed import machine
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from anyorder.objectives import Autoregressive, TrainingInputs, summed_loss
from anyorder.training.samples import Collator, Samples

VOCABULARY, LENGTH, BATCH, STEPS = 8000, 256, 8, 8
SOURCE_BYTES = 4_000_000
RESULTS = Path(__file__).parent / "results" / "data.json"


def main() -> None:
    """Measure, print and write down."""
    texts = python_texts(SOURCE_BYTES)
    tokenizer = train_tokenizer(texts, VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "python.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        prepared = _seconds(lambda: prepare(source, tokenizer, DataConfig(length=LENGTH), cache_dir=folder))
        opened = _seconds(lambda: prepare(source, tokenizer, DataConfig(length=LENGTH), cache_dir=folder))
        rows = prepare(source, tokenizer, DataConfig(length=LENGTH), cache_dir=folder)
        tokens = report_of(rows).tokens
        samples = Samples(rows, STEPS * BATCH * 3, seed=0)
        collator = Collator(objective=Autoregressive(), seed=0, samples_per_step=BATCH)
        batches = iter(DataLoader(samples, batch_size=BATCH, collate_fn=collate))
        all_inputs = iter(DataLoader(samples, batch_size=BATCH, collate_fn=collator))
        step = _step(next(all_inputs)["inputs"])
        runs: dict[str, Callable[[], object]] = {
            "rows of a batch as tensors": lambda: next(batches),
            "and the objective's training inputs": lambda: next(all_inputs),
            "optimizer step": step,
        }
        step()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(STEPS):
            for name, run in runs.items():
                seconds[name].append(_seconds(run))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    whole = medians["optimizer step"]
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"\n{source_size(texts):.1f} MB of text, {tokens:,} tokens, {len(rows):,} rows\n")
    print("| | time | |\n|---|---|---|")
    print(f"| tokenise, pack and write | {prepared:.1f} s | {tokens / prepared / 1e6:.2f} million tokens/s |")
    print(f"| open again | {opened * 1e3:.0f} ms | |")
    for name, median in medians.items():
        print(f"| {name} | {median * 1e3:.2f} ms | {median / whole:.2%} of a step, {BATCH / median:,.0f} rows/s |")
    record = {
        "machine": machine(),
        "tokens": tokens,
        "prepare_seconds": prepared,
        "open_seconds": opened,
        "median_seconds": medians,
        "share_of_step": medians["and the objective's training inputs"] / whole,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def source_size(texts: list[str]) -> float:
    """In MB."""
    return sum(len(text.encode()) for text in texts) / 1e6


def _step(inputs: TrainingInputs) -> Callable[[], object]:
    torch.manual_seed(0)
    model = Llama(
        ModelConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            max_position_embeddings=LENGTH,
            rotary=Rotary(theta=10_000.0),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss = summed_loss(model, inputs) / inputs.count
        loss.backward()
        optimizer.step()

    return step


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
