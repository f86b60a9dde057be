"""Does the order of writing matter for sudoku: left to right, in any order, or by diffusion, at equal size and steps?

Small networks of the same shape learn 4x4 sudoku, each in one mode: the problem is given, and the solution written
behind it. Problems are drawn from all 288 solutions, have one solution each, and are none of the published tests. Ye et
al. 2024 (arXiv 2410.14157) find diffusion far ahead on 9x9 sudoku and countdown.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import anyorder
from anyorder import DiffusionSampler
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from anyorder.objectives import Autoregressive, MaskedDiffusion, Objective, Permutation
from anyorder.orders import LeftToRight, MostConfident, Random
from anyorder.training import Training
from evidence.frame import SEEDS, Finding, Study

TITLE = "4x4 sudoku: share of problems solved"
ORDER = "share solved with the surest cell first, less that in another order by the same network"
MODE = "share solved with the surest cell first, less that of the network left to right"
CELLS = 16
BREAK, MASK = 5, 6
"""Tokens beside the digits, of which 0 is an empty cell: between problem and solution, and for diffusion."""

GIVEN = (4, 8)
"""Given cells of the published problems."""

LEFT, ANY, DIFFUSION = "network left to right", "network any order", "network diffusion"
RATE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained and measured."""

    hidden: int
    layers: int
    batch: int
    steps: int
    problems: int
    seeds: tuple[int, ...]


FULL = Sizes(hidden=64, layers=3, batch=32, steps=600, problems=108, seeds=SEEDS)
QUICK = Sizes(hidden=16, layers=1, batch=4, steps=8, problems=8, seeds=(0,))


def all_grids() -> Tensor:
    """Every 4x4 sudoku: int64 `[288, 16]`."""
    rows = list(itertools.permutations(range(1, 5)))
    grids = [
        [*itertools.chain(*grid)]
        for grid in itertools.product(rows, repeat=4)
        if all(len(set(column)) == 4 for column in zip(*grid, strict=True))
        and all(
            len({*grid[top][left : left + 2], *grid[top + 1][left : left + 2]}) == 4
            for top, left in itertools.product((0, 2), repeat=2)
        )
    ]
    return torch.tensor(grids)


def drawn(count: int, seed: int, left_out: Iterable[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """Draw problems with one solution each, and their solutions, equally many of each number of given cells.

    Args:
        count: of problems.
        seed: decides them.
        left_out: problems of the tests.
    """
    rng = torch.Generator().manual_seed(seed)
    grids_GC = all_grids()
    known = {tuple(problem) for problem in left_out}
    numbers = range(GIVEN[0], GIVEN[1] + 1)
    found: list[tuple[list[int], list[int]]] = []
    for index, given in enumerate(numbers):
        wanted = len(range(index, count, len(numbers)))
        kept: dict[tuple[int, ...], list[int]] = {}
        while len(kept) < wanted:
            solution_NC = grids_GC[torch.randint(len(grids_GC), (4096,), generator=rng)]
            given_NC = torch.rand(solution_NC.shape, generator=rng).argsort(1) < given
            fits_NG = ((grids_GC == solution_NC[:, None]) | ~given_NC[:, None]).all(2)
            for row in (fits_NG.sum(1) == 1).nonzero()[:, 0].tolist():
                problem = tuple((solution_NC[row] * given_NC[row]).tolist())
                if problem not in known:
                    kept[problem] = solution_NC[row].tolist()
        found += [(list(problem), solution) for problem, solution in itertools.islice(kept.items(), wanted)]
    return found


def published(data: Path, given: int) -> list[tuple[list[int], list[int]]]:
    """The published problems with so many given cells, and their solutions.

    Raises:
        UserError: the folder lacks them.
    """
    file = data / "planning" / f"sudoku_4x4_{given}.jsonl"
    if not file.is_file():
        raise UserError(f"data is {str(data)!r}, which lacks planning/{file.name}: give the folder that has it.")
    records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [
        (
            [int(cell) for cell in record["input"] if cell.isdigit()],
            [int(cell) for cell in record["output"] if cell.isdigit()],
        )
        for record in records
    ]


def network(sizes: Sizes) -> ModelConfig:
    """The shape of each."""
    return ModelConfig(
        vocab_size=MASK + 1,
        hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        max_position_embeddings=2 * CELLS + 1,
        rotary=Rotary(theta=10_000.0),
    )


def objectives() -> dict[str, Objective]:
    """What each network learns."""
    return {
        LEFT: Autoregressive(),
        ANY: Permutation(),
        DIFFUSION: MaskedDiffusion(mask_token_id=MASK, random_length=0.0),
    }


def ways() -> dict[str, dict[str, Any]]:
    """Of each network, orders of writing by what they are called."""
    llada = DiffusionSampler.preset
    return {
        LEFT: {"left to right": "left-to-right"},
        ANY: {"left to right": LeftToRight(), "random order": Random(), "surest first": MostConfident()},
        DIFFUSION: {
            "random order": llada("llada", steps=CELLS, remasking="random"),
            "surest first": llada("llada", steps=CELLS),
            "surest first, 4 passes": llada("llada", steps=4),
        },
    }


def findings(study: Study) -> Iterable[Finding]:
    """Train a network for each mode, then solve the tests in each of its orders."""
    sizes = QUICK if study.quick else FULL
    tests = {given: published(study.data, given) for given in GIVEN}
    left_out = [problem for of_number in tests.values() for problem, _ in of_number]
    problems = study.part("problems", lambda: drawn(sizes.steps * sizes.batch, 0, left_out))
    rows = [
        {"input_ids": [*problem, BREAK, *solution], "prompt_length": CELLS + 1, "turns": [[CELLS + 1, 2 * CELLS + 1]]}
        for problem, solution in problems
    ]
    solved: dict[tuple[int, str, str], list[list[float]]] = {}
    for seed in sizes.seeds:
        training = Training(steps=sizes.steps, batch_size=sizes.batch, learning_rate=RATE, seed=seed, save_every=0)
        for number, (name, objective) in enumerate(objectives().items()):
            torch.manual_seed(seed)
            start = Llama(network(sizes))
            model = study.trained(f"network-{number}-{seed}", lambda start=start: start, objective, rows, training)
            for given, test in tests.items():
                right: Mapping[str, list[float]] = study.part(
                    f"solved-{number}-{given}-{seed}",
                    lambda model=model, name=name, test=test, seed=seed: {
                        way: solve(model, order, test[: sizes.problems], seed) for way, order in ways()[name].items()
                    },
                )
                for way, values in right.items():
                    solved.setdefault((given, way, name), []).append(values)
    found = [
        Finding.of(f"share solved of the problems with {given} given cells", way, name, by_seed)
        for (given, way, name), by_seed in sorted(solved.items(), key=lambda item: -item[0][0])
    ]
    for given in reversed(GIVEN):
        pairs = [
            (ORDER, f"{given} given, less {way}", name, solved[given, way, name])
            for name, way in ((ANY, "left to right"), (ANY, "random order"), (DIFFUSION, "random order"))
        ]
        pairs += [(MODE, f"{given} given", name, solved[given, "left to right", LEFT]) for name in (ANY, DIFFUSION)]
        found += [
            Finding.of(group, label, name, differences(solved[given, "surest first", name], others))
            for group, label, name, others in pairs
        ]
    return sorted(
        found, key=lambda finding: (ORDER, MODE).index(finding.group) if finding.group in (ORDER, MODE) else -1
    )


def differences(by_seed: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> list[list[float]]:
    """Of each seed and problem."""
    return [[one - two for one, two in zip(*pair, strict=True)] for pair in zip(by_seed, others, strict=True)]


def solve(model: Llama, order: Any, test: Sequence[tuple[list[int], list[int]]], seed: int) -> list[float]:
    """Of each problem, 1 where every cell is right, else 0; the most probable tokens are taken, nothing is searched."""
    prompts = [[*problem, BREAK] for problem, _ in test]
    out = anyorder.generate(model, None, prompts, order=order, max_new_tokens=CELLS, seed=seed)
    return [float(ids[CELLS + 1 :] == solution) for ids, (_, solution) in zip(out.sequences, test, strict=True)]
