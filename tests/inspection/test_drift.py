"""The drift of an approximate cache, against the logits of both readers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anyorder.decoding.canvas import continuation
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.trace import collect
from anyorder.inspection.drift import watched_steps
from tests.decoding.diffusion.test_decoder import DIFFUSION, MODES, network, write


def test_the_drift_of_a_cache_is_that_of_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows, blocks of 4: the logits of both readers, in each pass within a block, compared by hand."""
    model = network(torch.float64)
    canvases = [continuation([1, 2, 3], 8), continuation([5], 8)]
    sampler = DiffusionSampler(cache="dual", block_length=4)
    unwatched = write(canvases, sampler, model=model)
    made: list[Tensor] = []
    project = model.logits

    def logits(hidden: Tensor) -> Tensor:
        made.append(project(hidden).clone())
        return made[-1]

    monkeypatch.setattr(model, "logits", logits)
    steps, drifts = watched_steps(model, canvases, sampler, mode=DIFFUSION, sample_ids=range(2))
    watched = collect(steps, canvases, range(2), model.config.eos_token_ids)
    assert watched.sequences == unwatched.sequences
    assert watched.trace.passes == unwatched.trace.passes == 8
    assert [drift.positions for drift in drifts] == [6, 4, 2, 6, 4, 2]
    for drift, (cached, exact) in zip(drifts, [made[at : at + 2] for at in (1, 3, 5, 8, 10, 12)], strict=True):
        p, q = exact.softmax(-1), cached.softmax(-1)
        assert drift.divergence == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))
        assert drift.largest == pytest.approx(float((p.log() - q.log()).abs().max()))
        assert drift.changed == float((p.argmax(-1) != q.argmax(-1)).double().mean())
        assert drift.divergence > 1e-6


def test_exact_caches_have_no_drift() -> None:
    canvas = continuation([1, 2, 3], 8)
    for sampler, mode in (
        (DiffusionSampler(cache="dual", block_length=4, refresh=1), DIFFUSION),
        (DiffusionSampler(cache="dual"), MODES["blocks"]),
    ):
        steps, drifts = watched_steps(network(), [canvas], sampler, mode=mode, sample_ids=[0])
        assert len(list(steps)) == 8
        assert drifts == []
