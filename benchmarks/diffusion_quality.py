"""What samplers of diffusion make of few passes: the likelihood of their texts under another network.

    python benchmarks/diffusion_quality.py ../shared/data/tinystories/tinystories_lowercased_4M.txt \
        ../shared/data/stories260K/stories260K.bin --tokenizer ../shared/data/stories260K/tok512.bin

A network with the weights of stories260K learns masked diffusion on the stories, its logits shifted as before and its
mask opened step by step (minutes on one core; it is kept in `--model` and read from there the next time). Then every
sampler continues the same beginnings of held-out stories in more and in fewer passes, at temperature 1, and stories260K
itself says how probable the continuations are: their mean negative log-likelihood in nats a token, beside that of the
true continuations. Texts that repeat themselves are probable too, so the share of different pairs of tokens stands
beside it. Writes a plot to `docs/images` and all numbers to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import anyorder
from anyorder import DiffusionSampler
from anyorder.decoding.canvas import continuation
from anyorder.decoding.diffusion.commit import Commit, EntropyBound, Threshold
from anyorder.inspection.drift import Drift, watched_steps
from anyorder.model.llama import Llama
from anyorder.model.modes import diffusion
from anyorder.objectives.inputs import Batch
from anyorder.objectives.loss import summed_loss
from anyorder.objectives.masked_diffusion import MaskedDiffusion

MASK, BOS = 0, 1  # <unk>, which no story has, and <s>
PROMPT, NEW, TEXTS = 16, 64, 64
LENGTH, BATCH, STEPS, RATE = 96, 24, 800, 4e-3


def train(teacher: Llama, tokens: Sequence[int], steps: int) -> Llama:
    """A network that diffuses, from the weights of one that writes from left to right."""
    model = Llama(teacher.config.replace(modes=(diffusion(MASK, shifted=True),), default_mode="diffusion"))
    model.load_state_dict(teacher.state_dict())
    objective = MaskedDiffusion(mask_token_id=MASK, shifted=True, opening_steps=steps // 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    draws = torch.Generator().manual_seed(0)
    mean = 0.0
    for step in range(steps):
        begins = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=draws).tolist()
        rows = [[BOS, *tokens[at : at + LENGTH - 1]] for at in begins]
        inputs = objective.inputs(Batch.of(rows, first_sample=step * BATCH, step=step), seed=0)
        loss = summed_loss(model, inputs) / inputs.count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step + 1, 100)
        if step % 100 == 99:
            print(f"step {step + 1}: {mean:.3f} nats a token", flush=True)
    return model.eval()


def main() -> None:
    """Train or read, write, judge, plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stories", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("stories-diffusion"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    teacher, tokenizer = anyorder.load(options.teacher, tokenizer=options.tokenizer, device="cpu")
    assert tokenizer is not None
    paragraphs = options.stories.read_text(encoding="utf-8").split("\n\n")
    ids = [tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"] for text in paragraphs]
    tokens = list(itertools.chain.from_iterable(ids))
    held_out = [[BOS, *tokens[at : at + PROMPT + NEW - 1]] for at in range(0, TEXTS * 200, 200)]
    known = tokens[TEXTS * 200 + LENGTH :]
    print(f"{len(known)} tokens to learn", flush=True)
    if options.model.exists():
        model, _ = anyorder.load(options.model, device="cpu")
    else:
        model = train(teacher, known, options.steps)
        anyorder.save(model, tokenizer, options.model)
    with torch.inference_mode():
        report(model, teacher, held_out)


def report(model: Llama, teacher: Llama, held_out: list[list[int]]) -> None:
    """All samplers, as tables and as a plot."""
    prompts = [story[:PROMPT] for story in held_out]
    written = anyorder.generate(teacher, None, prompts, max_new_tokens=NEW, temperature=1.0).token_ids
    known = {"the stories themselves": [story[PROMPT:] for story in held_out], "stories260K, 64 passes": written}
    points: dict[str, list[dict[str, float]]] = {}
    for name, texts in known.items():
        points[name] = [{"passes": NEW} | judged(teacher, prompts, texts)]
    for name, samplers in SAMPLERS.items():
        points[name] = []
        for sampler in samplers:
            out = anyorder.generate(model, None, prompts, order=sampler, max_new_tokens=NEW)
            passes = (
                sum(1 + max(e.step for e in out.trace.events if e.sample_id == row) for row in range(TEXTS)) / TEXTS
            )
            points[name].append({"passes": passes} | judged(teacher, prompts, out.token_ids))
            print(name, points[name][-1], flush=True)
    print("\n| sampler | passes | NLL, nats a token | different pairs |\n|---|---|---|---|")
    for name, line in points.items():
        for point in line:
            print(f"| {name} | {point['passes']:.0f} | {point['nll']:.2f} | {point['pairs']:.2f} |")
    drifts = {name: drift(model, prompts, sampler) for name, sampler in CACHES.items()}
    print("\n| cache | divergence, nats | most probable token changed |\n|---|---|---|")
    for name, (divergence, changed) in drifts.items():
        print(f"| {name} | {divergence:.4f} | {changed:.1%} |")
    root = Path(__file__).parent
    record = {"points": points, "drift": drifts, "texts": TEXTS, "prompt": PROMPT, "new_tokens": NEW}
    (root / "results" / "diffusion-quality.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    plot(points, root.parent / "docs" / "images" / "diffusion-passes.svg")


def judged(teacher: Llama, prompts: list[list[int]], texts: list[list[int]]) -> dict[str, float]:
    """Mean negative log-likelihood of the texts, and the share of pairs of neighbouring tokens that are different."""
    ids = torch.tensor([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
    log_prob = teacher(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    nll = -log_prob.gather(-1, ids[:, PROMPT:].unsqueeze(-1)).mean()
    pairs = [len(set(itertools.pairwise(text))) / (len(text) - 1) for text in texts]
    return {"nll": float(nll), "pairs": sum(pairs) / len(pairs)}


def drift(model: Llama, prompts: list[list[int]], sampler: DiffusionSampler) -> tuple[float, float]:
    """Divergence and changed tokens of the passes with a cache, the mean over positions."""
    canvases = [continuation(prompt, NEW) for prompt in prompts]
    mode, rows = model.config.mode("diffusion"), range(len(prompts))
    steps, drifts = watched_steps(model, canvases, sampler, mode=mode, sample_ids=rows)
    for _ in steps:
        pass
    mean = Drift.join(drifts)
    return mean.divergence, mean.changed


def plot(points: dict[str, list[dict[str, float]]], path: Path) -> None:
    """One line per sampler; what was not written by diffusion as a level."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "anyorder"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, line in points.items():
        if len(line) == 1:
            axes.axhline(line[0]["nll"], label=name, color="gray", linestyle=":" if "stories260K" in name else "--")
        else:
            axes.plot([at["passes"] for at in line], [at["nll"] for at in line], marker="o", label=name)
    axes.set(xscale="log", xlabel="passes", ylabel="NLL under stories260K, nats a token")
    axes.set_xticks([4, 8, 16, 32, 64], labels=["4", "8", "16", "32", "64"])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _steps(sampler: DiffusionSampler) -> list[DiffusionSampler]:
    return [sampler.replace(steps=steps, temperature=1.0) for steps in (4, 8, 16, 32, 64)]


def _rules(*rules: Commit, **fields: Any) -> list[DiffusionSampler]:
    return [DiffusionSampler(commit=rule, temperature=1.0, **fields) for rule in rules]


SAMPLERS = {
    "one block, surest first": _steps(DiffusionSampler()),
    "one block, random": _steps(DiffusionSampler(confidence="random")),
    "blocks of 16, surest first": _steps(DiffusionSampler(block_length=16)),
    "blocks of 16, dual cache": _steps(DiffusionSampler(block_length=16, cache="dual")),
    "blocks of 16, threshold": _rules(*map(Threshold, (0.01, 0.02, 0.04, 0.08, 0.2)), block_length=16),
    "one block, entropy bound": _rules(*map(EntropyBound, (20.0, 10.0, 5.0, 2.0, 0.5)), confidence="entropy"),
}

_DUAL = DiffusionSampler(block_length=16, cache="dual", temperature=1.0)
CACHES = {
    "prefix": _DUAL.replace(cache="prefix"),
    "dual": _DUAL,
    "dual, renewed every 8 steps": _DUAL.replace(refresh=8),
    "dual, renewed every 4 steps": _DUAL.replace(refresh=4),
}


if __name__ == "__main__":
    main()
