"""A network that writes in any order on text that it has not seen: likelihood of gaps, speculation, the order it takes.

Run: python benchmarks/any_order.py FOLDER tinystories.txt

`FOLDER` holds the two networks of benchmarks/any_order_train.py. Prints tables, and writes their numbers to
benchmarks/results/any-order-260K.json.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from any_order_train import LENGTH, rows_of

import anyorder
from anyorder import GroupPlan
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.decoding.canvas import BLANK
from anyorder.evaluation.order_search import by_likelihood, by_success, orders_taken
from anyorder.likelihood.exact import LogProb, left_to_right_log_prob, log_prob
from anyorder.model.llama import Llama
from anyorder.orders.by_name import AnyOrder
from anyorder.orders.kinds import LeftToRight, MostConfident, Order, Random, RightToLeft

TEXTS, GAP, NEW = 256, 8, 48
RESULTS = Path(__file__).parent / "results" / "any-order-260K.json"

Table = dict[str, dict[str, float]]


def per_token(parts: Sequence[LogProb]) -> dict[str, float]:
    """Nats per token, with the error that differences between texts make."""
    totals = torch.cat([part.per_token for part in parts]).double()
    return {"nats/token": -float(totals.mean()), "±": float(totals.std() / math.sqrt(len(totals)))}


def gaps(any_order: Llama, causal: Llama, rows: Sequence[list[int]]) -> Table:
    """The true gap in the middle of texts, from what stands around it."""
    start = (LENGTH - GAP) // 2
    around = [not start <= at < start + GAP for at in range(LENGTH)]
    gap = [not mark for mark in around]
    left = [mark and at < start for at, mark in enumerate(around)]
    in_order = [at if mark else LENGTH + at for at, mark in enumerate(around)]

    def scored(model: Llama, plan: GroupPlan, score: Any = log_prob) -> dict[str, float]:
        parts = [rows[at : at + 16] for at in range(0, len(rows), 16)]
        cut = int(plan.valid_BL.sum())
        return per_token([score(model, [row[:cut] for row in part], plan.select([0] * len(part))) for part in parts])

    short = start + GAP
    return {
        "both sides, left to right": scored(any_order, GroupPlan.from_masks([around], [gap])),
        "both sides, given tokens in their order": scored(any_order, GroupPlan.from_group_ids([in_order], [around])),
        "both sides, random order": scored(any_order, GroupPlan.from_masks([around], [gap], Random())),
        "both sides, all at once": scored(any_order, GroupPlan.from_masks([around], [gap], LeftToRight(size=GAP))),
        "left side alone": scored(any_order, GroupPlan.from_masks([left[:short]], [gap[:short]])),
        "left side alone, network from left to right": scored(
            causal, GroupPlan.from_masks([left[:short]], [gap[:short]]), left_to_right_log_prob
        ),
    }


def orders(any_order: Llama, causal: Llama, rows: Sequence[list[int]]) -> Table:
    """Whole texts."""
    named: dict[str, Order] = {
        "left to right": LeftToRight(), "right to left": RightToLeft(), "random": Random(),
        "pairs": LeftToRight(size=2), "groups of 4": LeftToRight(size=4), "random groups of 4": Random(size=4),
    }  # fmt: skip
    found = {
        order.name: {"nats/token": -order.per_token, "±": order.standard_error, "between draws": order.between_draws}
        for order in by_likelihood(any_order, rows, named, draws=3)
    }
    plan = GroupPlan.sequential(LENGTH, given=[1])
    parts = [rows[at : at + 16] for at in range(0, len(rows), 16)]
    scores = [left_to_right_log_prob(causal, part, plan.select([0] * len(part))) for part in parts]
    return {**found, "network from left to right": per_token(scores)}


def speculation(model: Llama, rows: Sequence[list[int]]) -> Table:
    """Passes for 48 tokens after 16."""
    prompts = [row[:16] for row in rows[:24]]
    found: Table = {}
    for name, order in (("left to right", LeftToRight()), ("random", Random())):
        for temperature in (0.0, 1.0):
            for draft in (2, 3, 4, 6):
                passes = drafted = accepted = 0
                for number, prompt in enumerate(prompts):
                    out = anyorder.generate(
                        model, None, prompt, order=Speculative(order=order, draft=draft), max_new_tokens=NEW,
                        temperature=temperature, seed=number,
                    )  # fmt: skip
                    passes += out.passes
                    drafted += out.trace.drafted
                    accepted += out.trace.accepted
                key = f"{name}, temperature {temperature:g}, draft {draft}"
                found[key] = {"passes/token": passes / (NEW * len(prompts)), "accepted": accepted / max(drafted, 1)}
    return found


def taken(model: Llama, rows: Sequence[list[int]]) -> Table:
    """The order that decoders take: 48 tokens after 16, and gaps of 16."""
    found: Table = {}
    chosen: dict[str, AnyOrder] = {
        "most confident": MostConfident(), "most confident pairs": MostConfident(size=2), "random": Random(),
    }  # fmt: skip
    start = (LENGTH - 2 * GAP) // 2
    canvases = {
        "continuation": [[*row[:16], *[BLANK] * NEW] for row in rows[:48]],
        "gap": [[*row[:start], *[BLANK] * 2 * GAP, *row[start + 2 * GAP :]] for row in rows[:48]],
    }
    for place, prompts in canvases.items():
        for name, order in chosen.items():
            out = anyorder.generate(model, None, prompts, order=order, temperature=0.0, batch_size=16)
            texts = orders_taken(out.trace)
            found[f"{place}, {name}"] = {
                "tau": statistics.fmean(text.tau for text in texts),
                "right behind the last": statistics.fmean(text.neighbours for text in texts),
                "mean jump": statistics.fmean(text.jump for text in texts),
            }
    return found


def success(model: Llama, rows: Sequence[list[int]]) -> Table:
    """Gaps of 4 tokens that are filled as they were."""
    start = (LENGTH - 4) // 2
    tasks = [([*row[:start], *[BLANK] * 4, *row[start + 4 :]], row) for row in rows]
    named: dict[str, AnyOrder] = {
        "left to right": LeftToRight(), "right to left": RightToLeft(), "random": Random(),
        "most confident": MostConfident(), "all at once": LeftToRight(size=4),
    }  # fmt: skip
    return {
        order.name: {"whole gaps": order.solved, "tokens": order.tokens} for order in by_success(model, tasks, named)
    }


def show(title: str, table: Table) -> None:
    """As markdown."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, row in table.items():
        cells = [f"{row[column]:.3f}" if column in row else "" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")


def main(folder: str, text_file: str) -> None:
    """Measure and print."""
    any_order, tokenizer = anyorder.load(Path(folder) / "any-order", device="cpu")
    causal, _ = anyorder.load(Path(folder) / "left-to-right", device="cpu")
    text = Path(text_file).read_text(encoding="utf-8")
    _, held_back = rows_of(text, tokenizer, any_order.config.bos_token_id or 0)
    rows = held_back[:TEXTS].tolist()
    tables = {
        f"gap of {GAP} tokens": gaps(any_order, causal, rows),
        "whole texts": orders(any_order, causal, rows[:128]),
        "speculation": speculation(any_order, rows),
        "order taken": taken(any_order, rows),
        "gaps of 4 filled as they were": success(any_order, rows[:128]),
    }
    for title, table in tables.items():
        show(title, table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
