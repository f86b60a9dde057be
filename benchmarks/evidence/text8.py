"""Bits per character from left to right, in any order and by diffusion, at equal steps, as a curve.

Small networks of the same shape learn rows of characters of text8's alphabet, a to z and the space, each in one mode.
A text of its own is scored: from left to right exactly, in any order exactly in one random order per row, whose mean
over rows is that over orders, and by diffusion by the bound, which is the same mean for a network that sees all that is
written. Published: Austin et al. 2021 (D3PM, arXiv 2107.03006), Hoogeboom et al. 2021 (ARDM, arXiv 2110.02037).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyorder import GroupPlan
from anyorder.likelihood.diffusion import MonteCarlo, diffusion_log_prob
from anyorder.likelihood.exact import left_to_right_log_prob, log_prob
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from anyorder.objectives import Autoregressive, MaskedDiffusion, Objective, Permutation
from anyorder.training import Training
from evidence.frame import SEEDS, Finding, Study
from evidence.stories import stories_text

TITLE = "Bits per character on text8's alphabet, by training steps"
BITS = "bits per character by training step"
GAP = "bits per character less those from left to right of the same seed and step"
MASKS = "bits per character less those of any order of the same seed and step"
ALPHABET = " abcdefghijklmnopqrstuvwxyz"
BEGIN, MASK = len(ALPHABET), len(ALPHABET) + 1
LEFT, ANY, DIFFUSION = "left to right", "any order, two streams", "diffusion, bound"
RATE = 3e-3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained and measured; a row has `length` characters, and each text is scored in `masks` masks."""

    hidden: int
    layers: int
    length: int
    batch: int
    looks: tuple[int, ...]
    held: int
    masks: int
    seeds: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Of the training."""
        return self.looks[-1]


FULL = Sizes(hidden=64, layers=3, length=64, batch=16, looks=(60, 120, 240, 480), held=96, masks=8, seeds=SEEDS)
QUICK = Sizes(hidden=16, layers=1, length=16, batch=4, looks=(4, 8), held=8, masks=4, seeds=(0,))


def characters(text: str) -> str:
    """The text in text8's alphabet: lower case, and one space for all between letters."""
    kept = (letter if letter in ALPHABET else " " for letter in text.lower())
    return " ".join("".join(kept).split())


def text_of(data: Path) -> str:
    """text8 where the folder has it, else TinyStories in the same alphabet."""
    file = data / "text8"
    file = file / "text8" if file.is_dir() else file
    return characters(file.read_text(encoding="utf-8") if file.is_file() else stories_text(data))


def rows_of(text: str, sizes: Sizes) -> list[list[list[int]]]:
    """Rows to learn, and rows held back from the last tenth, each behind the token that begins it."""

    def rows(part: str, count: int) -> list[list[int]]:
        # Spread over the whole part, so that neighbours are not of one story.
        starts = (torch.arange(count) * (len(part) - sizes.length) // (count - 1)).tolist()
        return [[BEGIN, *map(ALPHABET.index, part[start : start + sizes.length])] for start in starts]

    cut = len(text) * 9 // 10
    return [rows(text[:cut], sizes.steps * sizes.batch), rows(text[cut:], sizes.held)]


def objectives() -> dict[str, Objective]:
    """What each network learns."""
    return {
        LEFT: Autoregressive(),
        ANY: Permutation(),
        DIFFUSION: MaskedDiffusion(mask_token_id=MASK, random_length=0.0),
    }


def network(sizes: Sizes) -> ModelConfig:
    """The shape of each."""
    return ModelConfig(
        vocab_size=len(ALPHABET) + 2,
        hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        max_position_embeddings=sizes.length + 1,
        rotary=Rotary(theta=10_000.0),
        tie_word_embeddings=True,
    )


def scores(name: str, sizes: Sizes) -> Callable[[Llama, Tensor], Tensor]:
    """log p of rows but their first token, or its bound, in nats: `[rows]`."""

    def left_to_right(model: Llama, ids_NL: Tensor) -> Tensor:
        plan = GroupPlan.sequential([ids_NL.shape[1]] * len(ids_NL), given=[1] * len(ids_NL))
        return left_to_right_log_prob(model, ids_NL, plan).total

    def any_order(model: Llama, ids_NL: Tensor) -> Tensor:
        plan = GroupPlan.random([ids_NL.shape[1]] * len(ids_NL), given=[1] * len(ids_NL), seed=1)
        return log_prob(model, ids_NL, plan).total

    def diffusion(model: Llama, ids_NL: Tensor) -> Tensor:
        scored = [range(1, ids_NL.shape[1])] * len(ids_NL)
        method = MonteCarlo(samples=sizes.masks, group=sizes.masks // 2)
        mode = model.config.mode("diffusion")
        bounds = diffusion_log_prob(model, ids_NL.tolist(), scored, mode=mode, method=method, batch_size=64)
        return torch.tensor([bound.log_prob for bound in bounds])

    return {LEFT: left_to_right, ANY: any_order, DIFFUSION: diffusion}[name]


def findings(study: Study) -> Iterable[Finding]:
    """Train one network for each mode, and score it at several steps."""
    sizes = QUICK if study.quick else FULL
    learnt_NL, held_NL = (
        torch.tensor(rows) for rows in study.part("rows", lambda: rows_of(text_of(study.data), sizes))
    )
    curves: dict[str, list[dict[int, list[float]]]] = {name: [] for name in objectives()}
    for seed in sizes.seeds:
        training = Training(
            steps=sizes.steps, batch_size=sizes.batch, learning_rate=RATE, schedule="constant", seed=seed, save_every=0
        )
        for number, (name, objective) in enumerate(objectives().items()):
            torch.manual_seed(seed)
            start = Llama(network(sizes))

            def bits(model: Llama, name: str = name) -> list[float]:
                nats_N = scores(name, sizes)(model, held_NL)
                return (-nats_N.double() / sizes.length / math.log(2)).tolist()

            _, curve = study.curve(
                f"network-{number}-{seed}", lambda start=start: start, objective, learnt_NL, training, sizes.looks, bits
            )
            curves[name].append(curve)
    found = [
        Finding.of(BITS, f"step {step}", name, [curve[step] for curve in by_seed], at=step)
        for name, by_seed in curves.items()
        for step in sizes.looks
    ]
    for group, name, other in ((GAP, ANY, LEFT), (GAP, DIFFUSION, LEFT), (MASKS, DIFFUSION, ANY)):
        for step in sizes.looks:
            pairs = zip(curves[name], curves[other], strict=True)
            by_seed = [
                [one - two for one, two in zip(curve[step], against[step], strict=True)] for curve, against in pairs
            ]
            found.append(Finding.of(group, f"step {step}", name, by_seed))
    return found
