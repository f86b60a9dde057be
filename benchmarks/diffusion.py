"""Writing by diffusion against a literal loop, and what each cache makes of it.

    python benchmarks/diffusion.py

The literal loop runs the whole network on the whole canvas in every step and takes a softmax over the vocabulary at all
positions, as the published script does: once with transformers' Llama, shown a mask that hides nothing, and once with
this library's network, which leaves the difference that the decoder makes. All take turns in one run; the table gives
medians, and all runs are written to `benchmarks/results/diffusion-34M-cpu.json`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anyorder.decoding.canvas import continuation
from anyorder.decoding.diffusion.decoder import diffusion_steps
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.inspection.speed import machine, twin
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import diffusion
from anyorder.model.rope import Rotary
from anyorder.visibility import bidirectional

MASK, PROMPT, NEW, BLOCK, STEPS, ROUNDS = 8191, 64, 128, 32, 128, 3

CONFIG = ModelConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    max_position_embeddings=512,
    rotary=Rotary(theta=10_000.0),
    modes=(diffusion(MASK),),
)


def our_logits(model: Llama) -> Callable[[Tensor], Tensor]:
    """Of all positions, by this library's network."""

    def logits(ids: Tensor) -> Tensor:
        position = torch.arange(ids.shape[1]).unsqueeze(0)
        views = model.prepare(bidirectional(), {"position": position})
        return model.logits(model.hidden(ids, views))

    return logits


def their_logits(model: Llama) -> Callable[[Tensor], Tensor]:
    """Of all positions, by transformers' network with the same weights."""
    theirs = twin(model)

    def logits(ids: Tensor) -> Tensor:
        length = ids.shape[1]
        scores: Tensor = theirs(ids, attention_mask=torch.zeros(1, 1, length, length), use_cache=False).logits
        return scores

    return logits


def literal(logits_of: Callable[[Tensor], Tensor], prompt: list[int]) -> list[int]:
    """The published loop: everything, in every step."""
    ids = torch.tensor([[*prompt, *[MASK] * NEW]])
    for block in range(NEW // BLOCK):
        end = PROMPT + (block + 1) * BLOCK
        for _ in range(STEPS * BLOCK // NEW):
            logits = logits_of(ids)
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
    for step in diffusion_steps(model, [canvas], sampler, mode=CONFIG.mode("diffusion"), sample_ids=[0]):
        for event in step.written:
            canvas[event.position] = event.token_id
    return canvas


def main() -> None:
    """Measure, print, write down."""
    torch.manual_seed(0)
    model = Llama(CONFIG).eval()
    prompt = torch.randint(0, MASK, (PROMPT,)).tolist()
    own, theirs = our_logits(model), their_logits(model)
    torch.testing.assert_close(own(ids := torch.tensor([prompt])), theirs(ids), rtol=1e-4, atol=1e-4)
    preset = DiffusionSampler.preset("llada", steps=STEPS, block_length=BLOCK)
    modes: dict[str, Callable[[], list[int]]] = {
        "literal loop, transformers' Llama": lambda: literal(theirs, prompt),
        "literal loop, our network": lambda: literal(own, prompt),
        "no cache": lambda: ours(model, prompt, preset),
        "prefix cache": lambda: ours(model, prompt, preset.replace(cache="prefix")),
        "dual cache": lambda: ours(model, prompt, preset.replace(cache="dual")),
    }
    texts = {name: mode() for name, mode in modes.items()}  # warms up, too
    assert texts["literal loop, our network"] == texts["no cache"]
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(ROUNDS):
        for name, mode in modes.items():
            started = time.perf_counter()
            mode()
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(runs) for name, runs in seconds.items()}
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("\n| | tokens/s | times transformers' loop | times the loop on our network | keys |\n|---|---|---|---|---|")
    for name, took in median.items():
        times = [f"{median[loop] / took:.2f}" for loop in modes if loop.startswith("literal")]
        keys = "approximate" if name in ("prefix cache", "dual cache") else "exact"
        print(f"| {name} | {NEW / took:.1f} | {' | '.join(times)} | {keys} |")
    record = {"machine": machine(), "prompt": PROMPT, "new_tokens": NEW, "block": BLOCK, "steps": STEPS}
    path = Path(__file__).parent / "results" / "diffusion-34M-cpu.json"
    path.write_text(json.dumps(record | {"seconds": seconds}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
