"""What do few passes, caches and thresholds cost in quality, and is the likelihood bound what it claims to be?

A network that begins as the teacher learns masked diffusion on its texts. Every sampler continues beginnings of texts
at temperature 1, and the teacher says how probable the continuations are: nats per token more than its own, which have
the true distribution. A sampler that prefers sure tokens can be below 0, since its texts repeat themselves; so the
share of different pairs of neighbouring tokens stands beside it, also less that of the teacher's texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import anyorder
from anyorder import DiffusionSampler
from anyorder.likelihood.diffusion import Enumeration, MonteCarlo, diffusion_log_prob
from anyorder.model.llama import Llama
from anyorder.objectives import MaskedDiffusion
from anyorder.training import Training
from evidence.frame import SEEDS, Finding, Study
from evidence.teacher import MASK, draw, load_teacher, true_log_prob

TITLE = "Diffusion: quality against passes, judged by the teacher"
NLL = "NLL under the teacher less that of its own texts, nats per token"
PASSES = "passes that write into a text"
PAIRS = "share of different pairs of tokens less that of the teacher's texts"
BOUND = "bound by 16 random masks less the bound by all masks, nats per token"
BATCH, RATE, PROMPT, CHOSEN = 16, 3e-3, 8, 8


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained and written."""

    steps: int
    texts: int
    new: int
    seeds: tuple[int, ...]


FULL = Sizes(steps=200, texts=96, new=32, seeds=SEEDS)
QUICK = Sizes(steps=16, texts=8, new=16, seeds=(0,))


def samplers(new: int) -> dict[str, dict[str, DiffusionSampler]]:
    """Of each kind, samplers by what they are called."""
    preset = DiffusionSampler.preset

    def by_steps(name: str, **options: object) -> dict[str, DiffusionSampler]:
        return {
            f"{steps} steps": preset(name, steps=steps, temperature=1.0, **options)
            for steps in (new, new // 2, new // 4)
        }

    def by_threshold(**options: object) -> dict[str, DiffusionSampler]:
        return {
            f"threshold {threshold:g}": preset(
                "fast-dllm", threshold=threshold, block_length=new // 2, temperature=1.0, **options
            )
            for threshold in (0.5, 0.2, 0.05)
        }

    return {
        "llada": by_steps("llada"),
        "llada, random": by_steps("llada", remasking="random"),
        "llada-semi-ar": by_steps("llada-semi-ar", block_length=new // 2),
        "dream-entropy": by_steps("dream-entropy"),
        "fast-dllm, no cache": by_threshold(cache="none"),
        "fast-dllm, prefix cache": by_threshold(cache="prefix"),
        "fast-dllm, dual cache": by_threshold(cache="dual"),
    }


def findings(study: Study) -> Iterable[Finding]:
    """Train, write by every sampler, judge; then compare the bounds."""
    sizes = QUICK if study.quick else FULL
    teacher = load_teacher(study.data)
    length = PROMPT + sizes.new
    rows_NL = study.tensor("rows", lambda: draw(teacher, sizes.steps * BATCH, length, seed=1000))
    objective = MaskedDiffusion(mask_token_id=MASK, shifted=True, opening_steps=sizes.steps // 8)
    measured: dict[tuple[str, str, str], list[list[float]]] = {}
    for seed in sizes.seeds:
        texts_NL = study.tensor(f"texts-{seed}", lambda seed=seed: draw(teacher, sizes.texts, length, seed=seed))
        training = Training(steps=sizes.steps, batch_size=BATCH, learning_rate=RATE, seed=seed, save_every=200, keep=1)
        model = study.trained(f"diffusion-{seed}", lambda: load_teacher(study.data), objective, rows_NL, training)
        for kind, named in samplers(sizes.new).items():
            for name, sampler in named.items():
                found = study.part(
                    f"{kind}-{name}-{seed}",
                    lambda model=model, sampler=sampler, texts_NL=texts_NL, seed=seed: judged(
                        teacher, model, sampler, texts_NL, seed
                    ),
                )
                for group, values in found.items():
                    measured.setdefault((group, name, kind), []).append(values)
        measured.setdefault((BOUND, f"{CHOSEN} tokens", "diffusion"), []).append(
            study.part(f"bound-{seed}", lambda model=model, texts_NL=texts_NL: bounds(model, texts_NL))
        )
    order = (NLL, PASSES, PAIRS, BOUND)
    return [
        Finding.of(*key, by_seed) for key, by_seed in sorted(measured.items(), key=lambda item: order.index(item[0][0]))
    ]


def judged(
    teacher: Llama, model: Llama, sampler: DiffusionSampler, texts_NL: Tensor, seed: int
) -> dict[str, list[float]]:
    """Of each text, how probable and how varied its continuation is, against the true one, and its passes."""
    new = texts_NL.shape[1] - PROMPT
    prompts = texts_NL[:, :PROMPT]
    out = anyorder.generate(
        model, None, prompts.tolist(), order=sampler, max_new_tokens=new, seed=seed, batch_size=len(prompts)
    )
    written_NL = torch.tensor([ids[: texts_NL.shape[1]] for ids in out.sequences])
    nll_N = (true_log_prob(teacher, texts_NL) - true_log_prob(teacher, written_NL)) / new
    # With a cache, a text waits at the end of a block for those beside it: passes that write nothing do not count.
    steps: list[set[int]] = [set() for _ in prompts]
    for event in out.trace.events:
        steps[event.sample_id].add(event.step)
    varied = [
        different_pairs(written[PROMPT:]) - different_pairs(true[PROMPT:])
        for written, true in zip(written_NL.tolist(), texts_NL.tolist(), strict=True)
    ]
    return {NLL: nll_N.tolist(), PASSES: [float(len(own)) for own in steps], PAIRS: varied}


def different_pairs(ids: Sequence[int]) -> float:
    """Share of the pairs of neighbours that are different ones."""
    return len(set(itertools.pairwise(ids))) / (len(ids) - 1)


def bounds(model: Llama, texts_NL: Tensor) -> list[float]:
    """Of each text, the estimated bound less that of all masks, for a few tokens in the middle."""
    start = PROMPT + 2
    scored = [range(start, start + CHOSEN)] * len(texts_NL)
    estimated, exact = (
        diffusion_log_prob(model, texts_NL.tolist(), scored, method=method, batch_size=128)
        for method in (MonteCarlo(samples=16, group=8), Enumeration())
    )
    return [(a.log_prob - b.log_prob) / CHOSEN for a, b in zip(estimated, exact, strict=True)]
