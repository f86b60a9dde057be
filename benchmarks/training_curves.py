"""Every objective on real text: losses over steps, against the unigram entropy, from a causal network or from scratch.

    python benchmarks/training_curves.py TEXT CHECKPOINT [--tokenizer FILE] [--steps 2000] [--only NAME]

TEXT is cut: the last part is looked at, never learnt. CHECKPOINT is a small causal network (stories260K); networks from
scratch have its shape. Prints the table, and draws docs/images/training-curves.png.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from anyorder import checkpoints
from anyorder.model.llama import Llama
from anyorder.training.curves import draw_curves
from anyorder.training.runs import LOG, run
from anyorder.training.settings import Run

IMAGES = Path(__file__).parent.parent / "docs" / "images"
RESULTS = Path(__file__).parent / "results" / "training-curves.json"

RUNS: dict[str, dict[str, Any]] = {
    "left to right": {"objective": "autoregressive"},
    "any order": {"objective": "permutation"},
    "any order, from the causal network": {"objective": "permutation", "init": "causal"},
    "masked diffusion": {"objective": "masked-diffusion", "times": "stratified"},
    "masked diffusion, from the causal network": {
        "objective": "masked-diffusion",
        "times": "stratified",
        "init": "causal",
        "shifted": True,
        "opening_steps": 150,
        # The few tokens that are masked at low noise weigh much: larger batches and smaller steps than the others.
        "steps": 1000,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "evaluate_every": 250,
    },
    "block diffusion, from the causal network": {
        "objective": "block-diffusion",
        "times": "stratified",
        "block_length": 16,
        "init": "causal",
    },
    "mixture, from the causal network": {
        "objective": "mixture",
        "shares": ["autoregressive=0.5", "permutation=0.5"],
        "init": "causal",
    },
}


def unigram_entropy(text: str, tokenizer: Any) -> float:
    """Nats per token of the best code that knows how often each token comes and nothing else."""
    counts = Counter(tokenizer(text, add_special_tokens=False)["input_ids"])
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def main() -> None:
    """Train each, tell, draw."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("text", type=Path)
    words.add_argument("checkpoint")
    words.add_argument("--tokenizer")
    words.add_argument("--steps", type=int, default=2000)
    words.add_argument("--held_back", type=int, default=40_000, help="characters at the end that are not learnt")
    words.add_argument("--only", action="append", choices=RUNS, help="train these anew; the others stay as they were")
    given = words.parse_args()
    text = given.text.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "learnt.txt").write_text(text[: -given.held_back], encoding="utf-8")
        (folder / "looked-at.txt").write_text(text[-given.held_back :], encoding="utf-8")
        causal, tokenizer = checkpoints.load(given.checkpoint, tokenizer=given.tokenizer)
        checkpoints.save_model(causal, folder / "causal", tokenizer=tokenizer)
        torch.manual_seed(0)
        blank = Llama(causal.config)  # the same shape, weights drawn
        checkpoints.save_model(blank, folder / "blank", tokenizer=tokenizer)
        entropy = unigram_entropy(text[-given.held_back :], tokenizer)
        for number, (name, options) in enumerate(RUNS.items()):
            if given.only and name not in given.only:
                continue
            settings = {
                "data": folder / "learnt.txt", "validation": folder / "looked-at.txt", "output": folder / f"{number}",
                "steps": given.steps, "batch_size": 8, "length": 64, "learning_rate": 4e-3, "log_every": 50,
                "evaluate_every": given.steps // 4, "cache_dir": folder / "cache",
            }  # fmt: skip
            start = folder / options.get("init", "blank")
            began = time.perf_counter()
            run(Run(**settings | options | {"init": str(start)}))
            log = json.loads((folder / f"{number}" / LOG).read_text())["log"]
            keep(entropy, name, log, time.perf_counter() - began)
    tell()


def keep(entropy: float, name: str, log: list[dict[str, float]], seconds: float) -> None:
    """Puts a run among the results."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    entries = [
        {key: value for key, value in entry.items() if key in ("step", "loss") or "eval_" in key} for entry in log
    ]
    found["unigram entropy"] = entropy
    found["runs"][name] = {"seconds": seconds, "log": entries}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def tell() -> None:
    """Prints the table and draws the picture, of all results."""
    found = json.loads(RESULTS.read_text())
    print(f"\nunigram entropy {found['unigram entropy']:.2f} nats per token\n")
    print("| what is learnt | nats per token, held back | bits per byte | seconds |\n|---|---|---|---|")
    runs = {name: found["runs"][name] for name in RUNS if name in found["runs"]}
    for name, result in runs.items():
        last = {key: value for entry in result["log"] for key, value in entry.items() if key.startswith("eval_")}
        looked = [key for key in last if not key.endswith("_bits_per_byte")]
        for key in looked:
            part = f" ({key.removeprefix('eval_')})" if len(looked) > 1 else ""
            numbers = f"{last[key]:.2f} | {last[f'{key}_bits_per_byte']:.2f} | {result['seconds']:.0f}"
            print(f"| {name}{part} | {numbers} |")
    logs = {name: result["log"] for name, result in runs.items()}
    draw_curves(logs, IMAGES / "training-curves.png", level={"unigram entropy": found["unigram entropy"]})


if __name__ == "__main__":
    main()
