"""Fusion by the plainest means: a loop over rows, heads and keys, nothing shared with the package."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anyorder.decoding.fusion.layout import Question
from anyorder.model.config import LayerKind
from anyorder.model.llama import Llama
from tests.model.oracle import narrowed, oracle_logits


def places(question: Question, positions: str) -> tuple[list[float], int]:
    """Of prefix and segments, and of the first token behind them."""
    start = len(question.prefix)
    longest = max(len(segment) for segment in question.segments)
    out: list[float] = [float(place) for place in range(start)]
    for segment in question.segments:
        n = len(segment)
        first = {"shared": start, "running": len(out), "right": start + longest - n, "spread": start}[positions]
        step = longest / n if positions == "spread" else 1
        out += [first + step * j for j in range(n)]
    return out, len(out) if positions == "running" else start + longest


def fused_logits(
    model: Llama, question: Question, positions: str, correction: str, answer: Sequence[int] = (),
    tempered: tuple[float, float] = (1.0, 1.0),
) -> Tensor:  # fmt: skip
    """Logits of the token after the answer so far; the question must have a suffix, or an answer that has begun."""
    place, behind = places(question, positions)
    owner = [0] * len(question.prefix)
    for number, segment in enumerate(question.segments, start=1):
        owner += [number] * len(segment)
    tail = [*question.suffix, *answer]
    ids = [*question.prefix, *(token for segment in question.segments for token in segment), *tail]
    first = len(owner)
    owner += [-1] * len(tail)
    place += [float(behind + j) for j in range(len(tail))]
    count, lengths = len(question.segments), [len(segment) for segment in question.segments]
    weights = question.weights or (1.0,) * count
    added = {}
    for number, (weight, length) in enumerate(zip(weights, lengths, strict=True), start=1):
        share = weight / sum(weights) * count
        factor = {"1/N": 1 / count, "none": 1.0, "length": sum(lengths) / count / length / count}[correction]
        added[number] = math.log(share * factor)
    temperature, scale = tempered

    def sees(kind: LayerKind, row: int, key: int) -> bool:
        apart = owner[row] > 0 and owner[key] > 0 and owner[row] != owner[key]
        return key <= row and not apart and narrowed(kind, int(place[row]), int(place[key]))

    def weigh(scores: Tensor, row: int, keys: list[int]) -> Tensor:
        if row < first:
            return scores.softmax(0)
        inside = torch.tensor([owner[key] > 0 for key in keys])
        bias = torch.tensor([added.get(owner[key], 0.0) for key in keys], dtype=scores.dtype)
        powers = (torch.where(inside, scores / temperature, scores) + bias).exp()
        if bool(inside.any()):
            powers = torch.where(inside, powers * powers[inside].sum() ** (scale - 1), powers)
        return powers / powers.sum()

    return oracle_logits(model, ids, place, sees, len(ids), weigh)[-1]


def single_logits(model: Llama, ids: Sequence[int]) -> Tensor:
    """Logits of the token after plain text."""
    return oracle_logits(
        model, ids, range(len(ids)), lambda kind, row, key: key <= row and narrowed(kind, row, key), len(ids)
    )[-1]
