"""Samplers side by side: what is told of each is what it did."""

from __future__ import annotations

import pytest
import torch

import anyorder
from anyorder import DiffusionSampler, GroupPlan
from anyorder.checkpoints.adapt import adapt
from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError
from anyorder.inspection.compare import compare_sampling_methods, method_named, usual_methods
from anyorder.inspection.drift import Drift, watched_steps
from anyorder.likelihood.diffusion import Enumeration, MonteCarlo, diffusion_log_prob
from anyorder.likelihood.exact import left_to_right_log_prob, log_prob
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from tests.model.networks import VOCABULARY, network

MASK = VOCABULARY - 1
PROMPTS = [[3, 4, 5], [7, 8]]


@pytest.fixture
def model(float64: None) -> Llama:
    return network(eos_token_ids=(2,))


def test_what_is_told_of_a_sampler_is_what_it_did(model: Llama) -> None:
    able = adapt(model, [diffusion(MASK)])
    methods = {"plain": "diffusion", "quick": DiffusionSampler.preset("llada", steps=2)}
    told: list[str] = []
    compared = compare_sampling_methods(
        able, PROMPTS, methods, max_new_tokens=6, likelihood=Enumeration(), repeats=2, on_method=told.append
    )
    assert told == ["plain", "quick"] * 2
    for one, (name, order) in zip(compared, methods.items(), strict=True):
        out = anyorder.generate(able, None, PROMPTS, order=order, max_new_tokens=6)
        assert (one.name, one.texts, one.passes, one.tokens) == (name, None, out.passes, out.trace.tokens)
        assert one.token_ids == tuple(map(tuple, out.token_ids))
        assert one.seconds > 0
        assert one.tokens_per_second == one.tokens / one.seconds
        assert one.tokens_per_pass == one.tokens / one.passes
        texts, scored = [], []
        for prompt, written in zip(PROMPTS, out.token_ids, strict=True):
            kept = written[: written.index(2) + 1] if 2 in written else written
            texts.append([*prompt, *kept])
            scored.append([len(prompt) + at for at, token_id in enumerate(kept) if token_id != MASK])
        bounds = diffusion_log_prob(able, texts, scored, method=Enumeration())
        assert one.log_prob == pytest.approx(sum(bound.log_prob for bound in bounds), rel=1e-10)
        assert one.scored == sum(map(len, scored))
        assert one.nats_per_token == pytest.approx(-one.log_prob / one.scored)
        assert one.standard_error == 0
        assert one.bound
    assert compared[0].passes > compared[1].passes


def test_drift_is_told_of_approximate_caches_alone(model: Llama) -> None:
    able = adapt(model, [diffusion(MASK), blocks(MASK, 2)])
    cached = DiffusionSampler(cache="dual", block_length=3)
    methods = {
        "approximate": cached,
        "renewed": cached.replace(refresh=1),
        "exact": DiffusionSampler(mode="blocks", cache="dual"),
        "none": "diffusion",
        "blocks": "blocks",
    }
    compared = compare_sampling_methods(able, PROMPTS, methods, max_new_tokens=6, likelihood=Enumeration(), drift=True)
    canvases = [[*prompt, *[BLANK] * 6] for prompt in PROMPTS]
    steps, drifts = watched_steps(able, canvases, cached, mode=diffusion(MASK), sample_ids=range(2))
    assert len(list(steps)) == compared[0].passes
    positions = [drift.positions for drift in drifts]
    by = torch.tensor([drift.divergence for drift in drifts]), torch.tensor([drift.changed for drift in drifts])
    weights = torch.tensor(positions, dtype=torch.float64) / sum(positions)
    assert compared[0].drift is not None
    assert compared[0].drift == pytest.approx(float(weights @ by[0].double()))
    assert compared[0].drift > 1e-6
    assert compared[0].changed == pytest.approx(float(weights @ by[1].double()))
    assert [(one.drift, one.changed) for one in compared[1:]] == [(None, None)] * 4
    silent = compare_sampling_methods(able, PROMPTS, methods, max_new_tokens=6, likelihood=Enumeration())
    assert {one.drift for one in silent} == {None}
    assert Drift.join(drifts).largest == max(drift.largest for drift in drifts)


def test_estimates_have_an_error(model: Llama) -> None:
    able = adapt(model, [diffusion(MASK)])
    [one] = compare_sampling_methods(
        able, [3, 4], {"a": "diffusion"}, max_new_tokens=6, likelihood=MonteCarlo(samples=32)
    )
    assert one.standard_error > 0
    assert len(one.token_ids) == 1


def test_other_ways_have_exact_likelihoods(model: Llama) -> None:
    for mode, exact in ((LEFT_TO_RIGHT, left_to_right_log_prob), (ANY_ORDER, log_prob)):
        able = adapt(model, [mode])
        [one] = compare_sampling_methods(able, PROMPTS, {"a": mode.name}, max_new_tokens=5)
        total = 0.0
        for prompt, written in zip(PROMPTS, one.token_ids, strict=True):
            ids = [*prompt, *written]
            plan = GroupPlan.sequential([len(ids)], given=[[at < len(prompt) for at in range(len(ids))]])
            total += exact(able, [ids], plan).total.item()
        assert one.log_prob == pytest.approx(total, rel=1e-10)


def test_the_usual_methods_suit_the_network(model: Llama) -> None:
    able = adapt(model, (LEFT_TO_RIGHT, diffusion(MASK), blocks(MASK, 4), ANY_ORDER))
    for length in (6, 7, 16):
        methods = usual_methods(able, length)
        assert {"left-to-right", "llada", "blocks", "random"} <= set(methods)
        compared = compare_sampling_methods(able, [3, 4], max_new_tokens=length)
        assert [one.name for one in compared] == list(methods)
    assert list(usual_methods(model, 5)) == ["left-to-right"]


def test_methods_in_words() -> None:
    assert method_named("groups:4") == "groups:4"
    assert method_named("llada") == DiffusionSampler.preset("llada")
    words = "fast-dllm,block_length=8,threshold=0.9,cache=prefix"
    expected = DiffusionSampler.preset("fast-dllm", block_length=8, threshold=0.9, cache="prefix")
    assert method_named(words) == expected
    with pytest.raises(UserError, match=r"method 'llada,steps' has the option 'steps': write it as name=value\."):
        method_named("llada,steps")
    with pytest.raises(
        UserError,
        match=r"^method is 'lada': did you mean llada\? If not, give one of left-to-right, .* blocks:N, llada, ",
    ):
        method_named("lada")
    with pytest.raises(UserError, match=r"method 'llada,stepz=3' has an option that presets do not have"):
        method_named("llada,stepz=3")


def test_mistakes_are_told_with_the_remedy(model: Llama) -> None:
    with pytest.raises(UserError, match=r"methods is empty: give at least one, such as 'llada'\."):
        compare_sampling_methods(model, [3], {})
    with pytest.raises(UserError, match=r"repeats is 0: give a whole number above 0\."):
        compare_sampling_methods(model, [3], repeats=0)
    with pytest.raises(UserError, match=r"this network writes by 'left-to-right', not by 'diffusion': train it"):
        compare_sampling_methods(model, [3], {"left-to-right": "left-to-right", "d": DiffusionSampler()})
