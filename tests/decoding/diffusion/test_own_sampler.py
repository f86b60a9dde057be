"""The samplers of "Write your own sampler", against literal loops of the published formulas."""

from __future__ import annotations

import itertools
import math
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.decoding.canvas import BLANK, continuation
from anyorder.decoding.diffusion.cache import CachePolicy
from anyorder.decoding.diffusion.commit import BlockProgress, Commit, Count
from anyorder.decoding.diffusion.confidence import CONFIDENCES, Candidates
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.diffusion.text import CanvasText
from anyorder.errors import UserError
from tests.decoding import literal_diffusion as literal
from tests.decoding.diffusion.test_decoder import GAPS, MASK, MODES, PROMPTS, masked, network, same, widths, write
from tests.pages import BLOCK

PAGE = Path(__file__).parents[3] / "docs" / "write-your-own-sampler.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page defines."""
    script = tmp_path_factory.mktemp("page") / "page.py"
    blocks = BLOCK.finditer(PAGE.read_text(encoding="utf-8"))
    script.write_text("\n".join(block["code"] for block in blocks), encoding="utf-8")
    return runpy.run_path(str(script))


def test_each_takes_less_than_50_lines() -> None:
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        assert block["code"].count("\n") < 50


@torch.no_grad()
def klass(ids: list[int], *, probability: float, divergence: float, history: int) -> list[int]:
    """KLASS on one text: everything is read in every step."""
    ids, distributions = list(ids), []
    while MASK in ids:
        logits_LV = literal.Network(network())(ids)
        distributions.append(logits_LV.softmax(-1))
        candidates = {}
        for at in [at for at, token in enumerate(ids) if token == MASK]:
            token = int(logits_LV[at, :MASK].argmax())
            recent = distributions[-history - 1 :]
            divergences = [float((p[at] * (p[at] / q[at]).log()).sum()) for q, p in itertools.pairwise(recent)]
            is_stable = len(divergences) == history and max(divergences) < divergence
            candidates[at] = (token, float(distributions[-1][at, token]), is_stable)
        ready = [at for at, (_, p, is_stable) in candidates.items() if is_stable and p > probability]
        for at in ready or [max(candidates, key=lambda at: candidates[at][1])]:
            ids[at] = candidates[at][0]
    return ids


@pytest.mark.parametrize(("above", "below", "history"), [(0.2, 0.3, 2), (0.1, 1.0, 1), (0.0, 5.0, 2), (0.9, 0.01, 2)])
def test_klass_token_for_token(page: dict[str, Any], above: float, below: float, history: int) -> None:
    rule = page["Klass"](probability=above, divergence=below)
    sampler = DiffusionSampler(confidence=page["Stability"](history), commit=rule)
    canvases = [continuation(prompt, 16) for prompt in PROMPTS]
    generation = write(canvases, sampler)
    for canvas, sequence in zip(canvases, generation.sequences, strict=True):
        assert sequence == klass(masked(canvas), probability=above, divergence=below, history=history)
    if above == 0.0:
        assert generation.trace.passes < 16  # several in a step


def test_a_delayed_cache_reads_masks_and_what_was_just_written(
    page: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    read, asked = widths(model, monkeypatch)
    write([continuation([1, 2, 3], 8)], DiffusionSampler(cache=page["DelayedCache"](refresh=6)), model=model)
    assert read == [11, 7 + 1, 6 + 1, 5 + 1, 4 + 1, 3 + 1, 11, 1 + 1]
    assert asked == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("mode", ["diffusion", "shifted"])
def test_a_delayed_cache_that_is_renewed_in_each_step_is_none(page: dict[str, Any], mode: str) -> None:
    sampler, model = DiffusionSampler(steps=6, cfg_scale=0.7, temperature=0.5), network(torch.float64)
    cached = sampler.replace(cache=page["DelayedCache"](refresh=1))
    same(write(GAPS, sampler, model=model, mode=MODES[mode]), write(GAPS, cached, model=model, mode=MODES[mode]))


@settings(deadline=None, max_examples=20)
@given(
    canvases=st.lists(
        st.lists(st.integers(BLANK, MASK - 1), max_size=12).map(lambda ids: [1, *ids, BLANK, BLANK]),
        min_size=1,
        max_size=3,
    ),
    mode=st.sampled_from(["diffusion", "shifted"]),
    refresh=st.integers(2, 9),
)
def test_rows_of_a_batch_are_what_they_are_alone(
    page: dict[str, Any], canvases: list[list[int]], mode: str, refresh: int
) -> None:
    model = network(torch.float64)

    def sampler() -> DiffusionSampler:
        return DiffusionSampler(
            confidence=page["Stability"](1), commit=page["Klass"](0.1, 0.5), cache=page["DelayedCache"](refresh)
        )

    batch = write(canvases, sampler(), model=model, mode=MODES[mode])
    for row, canvas in enumerate(canvases):
        assert write([canvas], sampler(), model=model, mode=MODES[mode], sample_ids=[row]).sequences == [
            batch.sequences[row]
        ]


def test_a_function_is_told_where_its_candidates_are() -> None:
    seen: list[tuple[int, int]] = []

    def spied(candidates: Candidates) -> torch.Tensor:
        seen.extend((text.sample_id, at) for text, at in zip(candidates.texts, candidates.positions, strict=True))
        assert candidates.probabilities.shape == (len(seen), 40)
        return torch.zeros(len(seen))

    write([[1, BLANK, BLANK], [BLANK, 2, 3]], DiffusionSampler(confidence=spied, steps=1), sample_ids=[4, 2])
    assert seen == [(4, 1), (4, 2), (2, 0)]


class Drawn:
    """The confidence "random", as one from outside."""

    draws = True

    def __call__(self, candidates: Candidates) -> torch.Tensor:
        return CONFIDENCES["random"](candidates)


def test_a_confidence_that_draws_says_so_by_an_attribute() -> None:
    named, own = (DiffusionSampler(confidence=one, suppress_end="confidence") for one in ("random", Drawn()))
    assert (named.draws, own.draws) == (True, True)
    assert not DiffusionSampler(confidence=CONFIDENCES["margin"]).draws
    canvases = [continuation(prompt, 6) for prompt in PROMPTS]
    same(write(canvases, named), write(canvases, own))


class Selects(Commit):
    """A rule that selects what it is made with."""

    def __init__(self, *positions: int) -> None:
        self.positions = positions

    def select(self, confidence: Sequence[float], positions: Sequence[int], progress: BlockProgress) -> Sequence[int]:
        return self.positions


@pytest.mark.parametrize("positions", [[], [0], [1, 2, 3]])
def test_a_rule_that_selects_nothing_or_what_is_no_candidate(positions: list[int]) -> None:
    message = f"Selects selects {positions} of the positions [1, 2]: select at least one of them"
    with pytest.raises(UserError, match=re.escape(message)):
        write([[1, BLANK, BLANK]], DiffusionSampler(commit=Selects(*positions)))


def test_a_number_writes_the_surest_and_of_equals_the_lowest() -> None:
    class Two(Count):
        def count(self, ranked: Sequence[float], progress: BlockProgress) -> int:
            assert list(ranked) == sorted(ranked, reverse=True)
            return 2

    progress = BlockProgress(masks=4, step=0, steps=4)
    assert list(Two().select([0.1, 0.5, 0.5, 0.5], [3, 5, 7, 9], progress)) == [5, 7]
    assert list(Two().select([0.1, 0.2, -math.inf, 0.9], [3, 5, 7, 9], progress)) == [9, 5]


def test_a_policy_that_never_reads_the_masks_is_refused() -> None:
    class Nothing(CachePolicy):
        def reads(self, text: CanvasText) -> Sequence[int]:
            return range(1)

    with pytest.raises(UserError, match="Nothing reads none of the masked positions"):
        write([[1, BLANK, BLANK]], DiffusionSampler(cache=Nothing()))
