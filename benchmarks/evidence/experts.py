"""Are experts better than a dense network at equal work for a token, and upcycled ones better than those from scratch?

Networks that differ in their feed-forward layers alone learn the same stories in the same order: dense; eight experts
half as wide, of which two read each token; and eight as wide as the dense layer, of which one does. Then the dense
network learns further, as it is and with eight copies of its feed-forward layers as experts (upcycling, Komatsuzaki et
al. 2022, arXiv 2212.05055), both with a new optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.checkpoints.experts import to_experts
from anyorder.model.config import ModelConfig
from anyorder.model.experts import Experts, routings_of
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from anyorder.objectives import Autoregressive
from anyorder.training import Training
from evidence.frame import SEEDS, Finding, Study
from evidence.stories import Stories, losses, step_seconds, stories_text

TITLE = "Experts against a dense network, and upcycled against from scratch"
LOSS = "loss held back, nats per token, by step"
GAIN = "loss less that of the dense network after as many steps, nats per token"
UPCYCLING = "loss of upcycled experts less that of experts from scratch, nats per token"
SECONDS = "processor seconds of a training step"
LOAD = "rows that an expert reads, as a multiple of an even share"
DENSE, TWO, ONE, UPCYCLED = "dense", "2 of 8 experts, half as wide", "1 of 8 experts", "1 of 8 experts, upcycled"
NUMBER, BALANCE, RATE, TIMED = 8, 0.01, 3e-3, 8


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained and measured; `further` steps come after `steps`, and losses are taken every `every`."""

    vocabulary: int
    hidden: int
    layers: int
    length: int
    batch: int
    steps: int
    further: int
    every: int
    held: int
    seeds: tuple[int, ...]


FULL = Sizes(
    vocabulary=512, hidden=96, layers=4, length=128, batch=8, steps=200, further=100, every=50, held=64, seeds=SEEDS
)
QUICK = Sizes(vocabulary=300, hidden=24, layers=2, length=32, batch=4, steps=8, further=4, every=2, held=8, seeds=(0,))


def networks(sizes: Sizes) -> dict[str, ModelConfig]:
    """Networks of which equally many feed-forward weights read each token."""
    dense = ModelConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=3,
        max_position_embeddings=sizes.length,
        rotary=Rotary(theta=10_000.0),
        tie_word_embeddings=True,
    )
    halves = Experts(number=NUMBER, chosen=2, width=3 * sizes.hidden // 2, normalise=True)
    return {
        DENSE: dense,
        TWO: dense.replace(experts=halves, layers=()),
        ONE: to_experts(Llama(dense), NUMBER).config,
    }


def weights(config: ModelConfig) -> tuple[int, int]:
    """Weights of the network, and those that read one token: without the experts that are not chosen."""
    total = sum(weight.numel() for weight in Llama(config).parameters())
    experts = config.experts
    if experts is None:
        return total, total
    idle = (experts.number - experts.chosen) * 3 * experts.width * config.hidden_size
    return total, total - idle * sum(kind.experts for kind in config.layers)


def findings(study: Study) -> Iterable[Finding]:
    """Train from scratch, then further, and compare networks of the same seed."""
    sizes = QUICK if study.quick else FULL
    learnt_NL, held_NL = (torch.tensor(rows) for rows in study.part("rows", lambda: rows_of(study, sizes)))
    curves: dict[str, list[dict[int, list[float]]]] = {name: [] for name in (DENSE, TWO, ONE, UPCYCLED)}
    seconds: dict[str, list[list[float]]] = {name: [] for name in (DENSE, TWO, ONE)}
    loads: dict[str, list[list[list[float]]]] = {name: [] for name in (TWO, ONE, UPCYCLED)}

    def learnt(name: str, start: Llama, steps: int, seed: int) -> tuple[Llama, dict[int, list[float]]]:
        return study.curve(
            f"{name}-{seed}", lambda: start, Autoregressive(), learnt_NL, training(start, steps, seed),
            range(sizes.every, steps + 1, sizes.every),
            lambda model: losses(model, held_NL, sizes.batch).mean(1).tolist(),
        )  # fmt: skip

    def training(model: Llama, steps: int, seed: int) -> Training:
        return Training(
            steps=steps, batch_size=sizes.batch, learning_rate=RATE, schedule="constant", seed=seed, save_every=0,
            balance_loss=0.0 if model.config.experts is None else BALANCE,
        )  # fmt: skip

    for seed in sizes.seeds:
        trained = {}
        for number, (name, config) in enumerate(networks(sizes).items()):
            torch.manual_seed(seed)
            start = Llama(config)
            seconds[name].append(
                study.part(
                    f"seconds-{number}-{seed}",
                    lambda start=start, seed=seed: step_seconds(
                        copy.deepcopy(start), Autoregressive(), learnt_NL, training(start, TIMED, seed)
                    ),
                )
            )
            trained[name], curve = learnt(f"network-{number}", start, sizes.steps, seed)
            curves[name].append(curve)
        upcycled = to_experts(copy.deepcopy(trained[DENSE]), NUMBER)
        trained[UPCYCLED], curve = learnt("upcycled", upcycled, sizes.further, seed)
        curves[UPCYCLED].append({sizes.steps + step: values for step, values in curve.items()})
        _, dense = learnt("dense-further", trained[DENSE], sizes.further, seed)
        curves[DENSE][-1] |= {sizes.steps + step: values for step, values in dense.items()}
        for name in loads:
            loads[name].append(
                study.part(
                    f"load-{list(loads).index(name)}-{seed}", lambda model=trained[name]: load_of(model, held_NL)
                )
            )
    found = [
        Finding.of(LOSS, f"step {step}", name, [curve[step] for curve in by_seed], at=step)
        for name, by_seed in curves.items()
        for step in by_seed[0]
    ]
    end = sizes.steps + sizes.further
    found += [
        less(GAIN, f"step {step}", name, curves[name], step, curves[DENSE], step)
        for name, step in ((TWO, sizes.steps), (ONE, sizes.steps), (UPCYCLED, end))
    ]
    found += [
        less(UPCYCLING, f"step {end} less step {step}", UPCYCLED, curves[UPCYCLED], end, curves[ONE], step)
        for step in (sizes.further, sizes.steps)
    ]
    found += [Finding.of(SECONDS, "one thread", name, values) for name, values in seconds.items()]
    for name, by_seed in loads.items():
        for label, choose in (("busiest of a layer", max), ("idlest of a layer", min)):
            found.append(Finding.of(LOAD, label, name, [[choose(layer) for layer in layers] for layers in by_seed]))
    return found


def less(
    group: str, label: str, series: str, curves: Sequence[dict[int, list[float]]], step: int,
    others: Sequence[dict[int, list[float]]], other_step: int,
) -> Finding:  # fmt: skip
    """The difference of losses of the same texts, by seed."""
    pairs = zip(curves, others, strict=True)
    by_seed = [
        [one - other for one, other in zip(curve[step], against[other_step], strict=True)] for curve, against in pairs
    ]
    return Finding.of(group, label, series, by_seed)


def rows_of(study: Study, sizes: Sizes) -> list[list[list[int]]]:
    """Rows to learn, and rows held back."""
    stories = Stories(stories_text(study.data), sizes.vocabulary)
    learnt = stories.rows(stories.learnt, sizes.length)[: (sizes.steps + sizes.further) * sizes.batch]
    return [learnt.tolist(), stories.rows(stories.held_back, sizes.length)[: sizes.held].tolist()]


def load_of(model: Llama, rows_NL: Tensor) -> list[list[float]]:
    """Of each layer, the share of rows that each expert reads, times the number of experts: 1 is even."""
    with torch.no_grad(), routings_of(model) as routings:
        model(rows_NL)
    return [(routing.load / routing.load.sum() * len(routing.load)).tolist() for routing in routings]
