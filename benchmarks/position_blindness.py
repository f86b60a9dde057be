"""What query rows gain by being told their position, in a small training on real text.

    python benchmarks/position_blindness.py stories260K.bin tok512.bin tinystories.txt

Rotary embeddings enter through attention scores alone. A query row that sees a single key, such as the start token,
gives it all of its attention wherever it stands, so without being told its position it predicts the same everywhere.
Two networks are trained on the beginnings of paragraphs in random orders, from the same weights and with the same
draws; in one the projection of the position is zero and stays so. Prints the loss on held-back ones by how many tokens
a prediction could see, and writes benchmarks/results/position-blindness.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from anyorder.objectives import Batch, Permutation, predictions, summed_loss

LENGTH, BATCH, STEPS, PARAGRAPHS, HELD_BACK = 24, 32, 600, 12_000, 1024

RESULTS = Path(__file__).parent / "results" / "position-blindness.json"


def main(checkpoint: str, tokenizer_file: str, text_file: str) -> None:
    """Train both, measure, print."""
    start, tokenizer = anyorder.load(checkpoint, tokenizer=tokenizer_file, device="cpu")
    assert tokenizer is not None
    paragraphs = Path(text_file).read_text(encoding="utf-8").split("\n\n")[:PARAGRAPHS]
    bos = start.config.bos_token_id or 0
    texts = [[bos, *tokenizer(paragraph[:200])["input_ids"]][: LENGTH + 1] for paragraph in paragraphs]
    texts = [text for text in texts if len(text) == LENGTH + 1]
    held_back, texts = texts[:HELD_BACK], texts[HELD_BACK:]
    print(
        f"{len(texts)} beginnings of {LENGTH} tokens to learn from, {HELD_BACK} held back; {STEPS} steps of {BATCH}\n"
    )
    losses = {}
    for name, told in (("told", True), ("not told", False)):
        torch.manual_seed(0)
        model = adapt(Llama(start.config), (ANY_ORDER,)).train()
        train(model, texts, told)
        losses[name] = by_seen(model, held_back)
    print("| tokens seen | position told | position not told |\n|---|---|---|")
    bands = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, LENGTH))
    rows = []
    for low, high in bands:
        told_loss, blind_loss = (float(losses[name][low - 1 : high].mean()) for name in ("told", "not told"))
        rows.append({"seen": [low, high], "told": told_loss, "not told": blind_loss})
        print(f"| {low if low == high else f'{low} to {high}'} | {told_loss:.3f} | {blind_loss:.3f} |")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"steps": STEPS, "batch": BATCH, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def train(model: Llama, texts: list[list[int]], told: bool) -> None:
    """`STEPS` steps of AdamW in random orders, the start token given."""
    assert model.query_rows is not None
    if not told:
        torch.nn.init.zeros_(model.query_rows.position.weight)
        model.query_rows.position.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.05)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    for step in range(STEPS):
        chosen = [texts[order[(step * BATCH + i) % len(texts)]] for i in range(BATCH)]
        inputs = Permutation().inputs(Batch.of(chosen, [1] * BATCH, first_sample=step * BATCH, step=step), 0)
        loss = summed_loss(model, inputs) / inputs.count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 100 == 0:
            passed = time.perf_counter() - started
            print(f"step {step + 1}: {loss.item():.3f} nats per token, {passed:.0f} s", file=sys.stderr, flush=True)


@torch.no_grad()
def by_seen(model: Llama, texts: list[list[int]]) -> torch.Tensor:
    """Mean loss of the predictions that could see 1, 2, ... `LENGTH` tokens, each in a random order."""
    inputs = Permutation().inputs(Batch.of(texts, [1] * len(texts)), 1)
    nats_N = F.cross_entropy(predictions(model.eval(), inputs), inputs.target_N, reduction="none")
    return nats_N.view(len(texts), LENGTH).mean(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
