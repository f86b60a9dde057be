"""Writing by diffusion against a literal loop, and what each cache makes of it.

    python benchmarks/diffusion.py

The literal loop runs the whole network on the whole canvas in every step and takes a softmax over the vocabulary at all
positions, as the published script does. All take turns in one run; the table gives medians, and is written to
`benchmarks/results/diffusion-34M-cpu.json` too.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from anyorder.decoding.canvas import continuation
from anyorder.decoding.diffusion import DiffusionSampler, diffusion_steps
from anyorder.inspection.speed import machine
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from anyorder.visibility import bidirectional
from anyorder.ways import diffusion

MASK, PROMPT, NEW, BLOCK, STEPS, ROUNDS = 8191, 64, 128, 32, 128, 3

CONFIG = ModelConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    max_position_embeddings=512,
    rotary=Rotary(theta=10_000.0),
    ways=(diffusion(MASK),),
)


def literal(model: Llama, prompt: list[int]) -> list[int]:
    """The published loop: everything, in every step."""
    ids = torch.tensor([[*prompt, *[MASK] * NEW]])
    position = torch.arange(ids.shape[1]).unsqueeze(0)
    for block in range(NEW // BLOCK):
        end = PROMPT + (block + 1) * BLOCK
        for _ in range(STEPS * BLOCK // NEW):
            views = model.prepare(bidirectional(), {"position": position})
            logits = model.logits(model.hidden(ids, views))
            token = logits.argmax(-1)
            confidence = logits.softmax(-1).gather(-1, token.unsqueeze(-1)).squeeze(-1)
            masked = ids == MASK
            confidence = torch.where(masked, confidence, -torch.inf)
            confidence[:, end:] = -torch.inf
            chosen = confidence.topk(BLOCK * NEW // (STEPS * BLOCK), dim=-1).indices
            ids[0, chosen[0]] = token[0, chosen[0]]
    written: list[int] = ids[0].tolist()
    return written


def ours(model: Llama, prompt: list[int], sampler: DiffusionSampler) -> list[int]:
    """The same by the decoder."""
    canvas = continuation(prompt, NEW)
    for step in diffusion_steps(model, [canvas], sampler, way=CONFIG.way("diffusion"), rows=[0]):
        for event in step.written:
            canvas[event.position] = event.token_id
    return canvas


def main() -> None:
    """Measure, print, write down."""
    torch.manual_seed(0)
    model = Llama(CONFIG).eval()
    prompt = torch.randint(0, MASK, (PROMPT,)).tolist()
    preset = DiffusionSampler.preset("llada", steps=STEPS, block_length=BLOCK)
    ways: dict[str, Callable[[], list[int]]] = {
        "literal loop": lambda: literal(model, prompt),
        "no cache": lambda: ours(model, prompt, preset),
        "prefix cache": lambda: ours(model, prompt, preset.replace(cache="prefix")),
        "dual cache": lambda: ours(model, prompt, preset.replace(cache="dual")),
    }
    assert ways["literal loop"]() == ways["no cache"]()  # warms up both
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(runs) for name, runs in seconds.items()}
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("\n| | tokens/s | times the literal loop | keys |\n|---|---|---|---|")
    for name, took in median.items():
        keys = "exact" if name in ("literal loop", "no cache") else "approximate"
        print(f"| {name} | {NEW / took:.1f} | {median['literal loop'] / took:.2f} | {keys} |")
    record = {"machine": machine(), "prompt": PROMPT, "new_tokens": NEW, "block": BLOCK, "steps": STEPS}
    path = Path(__file__).parent / "results" / "diffusion-34M-cpu.json"
    path.write_text(json.dumps(record | {"seconds": seconds}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
