"""Does a network that learnt to write in any order keep the distribution, and what does a mixture cost?

Networks begin as the teacher and learn, in equally many steps, any order alone, diffusion alone, or a mixture of left
to right, any order and diffusion. Then the distance from the teacher is measured in every way that each can write, and
gaps are filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder import GroupPlan
from anyorder.likelihood.diffusion import MonteCarlo, diffusion_log_prob
from anyorder.likelihood.exact import left_to_right_log_prob, log_prob
from anyorder.model.llama import Llama
from anyorder.objectives import Autoregressive, MaskedDiffusion, Mixture, Objective, Permutation
from anyorder.training import Training
from evidence.frame import SEEDS, Finding, Study
from evidence.teacher import MASK, Gap, distances, draw, evidence_bounds, in_parts, load_teacher, true_log_prob

TITLE = "Any order against the teacher: KL in nats per token"
KL = "KL from the teacher, nats per token"
GAPS = "gap: KL from the true posterior, nats per token of the gap"
FILLED = "filled gap: nats per token of the gap by which the text is less probable than the true one"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained and measured."""

    length: int
    steps: int
    texts: int
    draws: int
    seeds: tuple[int, ...]
    masks: int


FULL = Sizes(length=48, steps=200, texts=192, draws=16, seeds=SEEDS, masks=8)
QUICK = Sizes(length=24, steps=20, texts=16, draws=4, seeds=(0,), masks=4)
BATCH, RATE, GAP = 16, 3e-3, 4


def objectives(steps: int) -> dict[str, Objective]:
    """What each network learns; equally many steps."""
    any_order = Permutation()
    diffusion = MaskedDiffusion(mask_token_id=MASK, shifted=True, opening_steps=steps // 8)
    parts = [Autoregressive(), any_order, diffusion]
    return {
        "any order": any_order,
        "diffusion": diffusion,
        "mixture": Mixture(parts=parts, shares=[1, 1, 1], by="step"),
    }


def ways(model: Llama, sizes: Sizes) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Each way of writing that the network has, with log q of texts."""
    length = sizes.length
    modes = {mode.name for mode in model.config.modes}

    def planned(plan: GroupPlan) -> Callable[[Tensor], Tensor]:
        return lambda part: log_prob(model, part, plan.select([0] * len(part))).total

    if "left-to-right" in modes:
        plan = GroupPlan.sequential([length], given=[1])
        yield (
            "left to right, next token",
            lambda part: left_to_right_log_prob(model, part, plan.select([0] * len(part))).total,
        )
    if "any-order" in modes:
        yield "left to right, query rows", planned(GroupPlan.sequential([length], given=[1]))
        yield (
            "random order",
            lambda part: (
                log_prob(model, part, GroupPlan.random([length] * len(part), given=[1] * len(part), seed=1)).total
            ),
        )
        yield "groups of 2", planned(GroupPlan.blocks([length], 2, given=[1]))
        yield "groups of 4", planned(GroupPlan.blocks([length], 4, given=[1]))
    if "diffusion" in modes:
        method = MonteCarlo(samples=sizes.masks, group=sizes.masks // 2)
        yield "diffusion, bound", lambda part: diffusion_bound(model, part, method)


def findings(study: Study) -> Iterable[Finding]:
    """Train, then measure each network in each of its ways, then fill gaps."""
    sizes = QUICK if study.quick else FULL
    teacher = load_teacher(study.data)
    rows_NL = study.tensor("rows", lambda: draw(teacher, min(sizes.steps * BATCH, 4096), sizes.length, seed=1000))
    measured: dict[tuple[str, str, str], list[list[float]]] = {}
    for seed in sizes.seeds:
        texts_NL = study.tensor(f"texts-{seed}", lambda seed=seed: draw(teacher, sizes.texts, sizes.length, seed=seed))
        networks = {}
        for name, objective in objectives(sizes.steps).items():
            training = Training(
                steps=sizes.steps, batch_size=BATCH, learning_rate=RATE, seed=seed, save_every=200, keep=1
            )
            networks[name] = study.trained(
                f"{name.replace(' ', '-')}-{seed}", lambda: load_teacher(study.data), objective, rows_NL, training
            )
        for name, model in networks.items():
            for way, log_q in ways(model, sizes):
                values = study.part(
                    f"kl-{name}-{way}-{seed}",
                    lambda log_q=log_q, texts_NL=texts_NL: distances(teacher, texts_NL, in_parts(texts_NL, log_q)),
                )
                measured.setdefault((KL, way, name), []).append(values)
        for key, values in study.part(
            f"gaps-{seed}",
            lambda texts_NL=texts_NL, networks=networks, seed=seed: gaps(teacher, networks, texts_NL, sizes, seed),
        ).items():
            group, label, series = key.split("|")
            measured.setdefault((group, label, series), []).append(values)
    order = {group: number for number, group in enumerate((KL, GAPS, FILLED))}
    return [Finding.of(*key, by_seed) for key, by_seed in sorted(measured.items(), key=lambda item: order[item[0][0]])]


def gaps(teacher: Llama, networks: dict[str, Llama], ids_NL: Tensor, sizes: Sizes, seed: int) -> dict[str, list[float]]:
    """Of each text, how far each network's gaps are from the true posterior, and how probable the filled texts are."""
    gap = Gap(sizes.length // 2, GAP)
    any_order = {name: model for name, model in networks.items() if model.query_rows is not None}
    true_N = true_log_prob(teacher, ids_NL)
    low_N, high_N = evidence_bounds(teacher, any_order["any order"], gap, ids_NL, sizes.draws, seed)
    posterior_N = true_N - (low_N + high_N) / 2
    start_N = true_log_prob(teacher, ids_NL[:, : gap.start])
    left_N = true_log_prob(teacher, ids_NL[:, : gap.start + GAP]) - start_N
    found = {
        f"{GAPS}|left side alone|teacher": posterior_N - left_N,
        f"{GAPS}|width of the bounds|teacher": high_N - low_N,
    }
    filled = {}
    for name, model in any_order.items():
        found[f"{GAPS}|both sides|{name}"] = posterior_N - gap.log_q(model, ids_NL)
        filled[f"both sides, 1 draw|{name}"] = gap.drawn(model, ids_NL, 1, seed)[:, 0]
    drawn_NKL = gap.drawn_from_the_left(teacher, ids_NL, sizes.draws, seed)
    flat_N = true_log_prob(teacher, drawn_NKL.flatten(0, 1))
    # Drawn from the left, so the weight of a gap is the probability of what is right of it.
    left_NK = true_log_prob(teacher, drawn_NKL[:, :, : gap.start + GAP].flatten(0, 1))
    right_NK = (flat_N - left_NK).view(len(ids_NL), -1)
    rng = torch.Generator().manual_seed(seed)
    for count in sorted({1, 4, sizes.draws}):
        chosen_N = torch.multinomial(right_NK[:, :count].softmax(1), 1, generator=rng)[:, 0]
        filled[f"left side, {count} scored|teacher"] = drawn_NKL[torch.arange(len(ids_NL)), chosen_N]
    for name, texts_NL in filled.items():
        found[f"{FILLED}|{name}"] = true_N - true_log_prob(teacher, texts_NL)
    return {name: (values / GAP).tolist() for name, values in found.items()}


def diffusion_bound(model: Llama, part: Tensor, method: MonteCarlo) -> Tensor:
    """The bound of log q of texts but their first token."""
    scored = [range(1, part.shape[1])] * len(part)
    bounds = diffusion_log_prob(
        model, part.tolist(), scored, mode=model.config.mode("diffusion"), method=method, batch_size=128
    )
    return torch.tensor([bound.log_prob for bound in bounds])
