"""How far is a network whose query heads share key-value heads from the one that it was, at once and after training?

The key-value heads of the teacher are pooled by their mean, by the first of each group, or drawn anew (Ainslie et al.
2023, arXiv 2305.13245, figures 4 and 5), and the network learns further on texts of the teacher itself. So the
distance is exact, and only what is lost by sharing is to be learnt again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from anyorder import GroupPlan
from anyorder.checkpoints.heads import share_heads
from anyorder.likelihood.exact import left_to_right_log_prob
from anyorder.model.llama import Llama
from anyorder.objectives import Autoregressive
from anyorder.training import Training
from evidence.frame import SEEDS, Finding, Study
from evidence.teacher import distances, draw, in_parts, load_teacher

TITLE = "Fewer key-value heads: KL from the network with all, nats per token"
BATCH, RATE = 16, 2e-3
POOLINGS = ("mean", "first", "random")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained and measured; a network learns each number of steps from its start."""

    length: int
    texts: int
    steps: tuple[int, ...]
    seeds: tuple[int, ...]


FULL = Sizes(length=48, texts=128, steps=(0, 60), seeds=SEEDS)
QUICK = Sizes(length=24, texts=16, steps=(0, 8), seeds=(0,))


def log_q(model: Llama, texts_NL: Tensor) -> Tensor:
    """Log-probability of each text but its first token: `[N]`."""
    plan = GroupPlan.sequential([texts_NL.shape[1]], given=[1])
    return in_parts(texts_NL, lambda part: left_to_right_log_prob(model, part, plan.select([0] * len(part))).total)


def findings(study: Study) -> Iterable[Finding]:
    """All numbers of heads, poolings and steps."""
    sizes = QUICK if study.quick else FULL
    teacher = load_teacher(study.data)
    heads = teacher.config.num_key_value_heads
    rows_NL = study.tensor("rows", lambda: draw(teacher, max(sizes.steps) * BATCH, sizes.length, seed=1000))
    found = []
    for steps in sizes.steps:
        for fewer in range(heads - 1, 0, -1):
            if heads % fewer:
                continue
            for pooling in POOLINGS:
                by_seed = [distance(study, sizes, rows_NL, fewer, pooling, steps, seed) for seed in sizes.seeds]
                group = f"after {steps} steps: KL, nats per token"
                found.append(Finding.of(group, f"{fewer} of {heads} heads", pooling, by_seed))
    return found


def distance(
    study: Study, sizes: Sizes, rows_NL: Tensor, heads: int, pooling: str, steps: int, seed: int
) -> list[float]:
    """Of each text, how much less probable it is to the network with fewer heads."""
    teacher = load_teacher(study.data)
    texts_NL = study.tensor(f"texts-{seed}", lambda: draw(teacher, sizes.texts, sizes.length, seed=seed))

    def pooled() -> Llama:
        return share_heads(load_teacher(study.data), heads, pooling, seed)

    name = f"{pooling}-{heads}-{steps}-{seed}"
    if steps == 0:
        return study.part(f"kl-{name}", lambda: distances(teacher, texts_NL, log_q(pooled(), texts_NL)))
    training = Training(steps=steps, batch_size=BATCH, learning_rate=RATE, seed=seed, save_every=0)
    model = study.trained(name, pooled, Autoregressive(), rows_NL, training)
    return study.part(f"kl-{name}", lambda: distances(teacher, texts_NL, log_q(model, texts_NL)))
