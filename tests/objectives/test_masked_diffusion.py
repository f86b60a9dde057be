"""Masked diffusion: the loss from its formula, what is drawn, and how answers end."""

from __future__ import annotations

import math

import pytest
import torch

from anyorder.attention import Request
from anyorder.attention.hints import simplify
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.objectives import (
    Antithetic,
    Batch,
    Independent,
    MaskedDiffusion,
    MaskedDiffusionTuning,
    Stratified,
    Times,
    summed_loss,
)
from anyorder.visibility import bidirectional
from tests.model.networks import VOCABULARY, network
from tests.model.oracle import oracle_logits
from tests.objectives.cases import END, MASK, ragged


class At(Times):
    """One time for all, so that numbers can be worked out by hand."""

    def __init__(self, time: float) -> None:
        self.time = time

    def draw(self, seed: int, sample: int, count: int = 1) -> torch.Tensor:
        return torch.full((count,), self.time, dtype=torch.float64)


def constant_scores(model: Llama) -> Llama:
    """Every prediction costs ln(vocabulary)."""
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def test_pre_training_by_hand() -> None:
    """At t = 1 all 4 + 2 tokens are masked with p = 1; each costs ln 31; divided by the 6 tokens."""
    model = constant_scores(network())
    inputs = MaskedDiffusion(mask_token_id=MASK, times=At(1.0), random_length=0.0).inputs(
        Batch.of([[1, 2, 3, 4], [5, 6]]), 0
    )
    assert inputs.ids_BR.tolist() == [[MASK] * 4, [MASK, MASK, 0, 0]]
    assert inputs.target_N.tolist() == [1, 2, 3, 4, 5, 6]
    assert inputs.count == 6
    assert summed_loss(model, inputs).item() / 6 == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_weights_are_one_over_p() -> None:
    """t = 0.25, eps = 0.2: p = 0.8 x 0.25 + 0.2 = 0.4, so each masked token counts 2.5."""
    inputs = MaskedDiffusion(mask_token_id=MASK, times=At(0.25), eps=0.2, random_length=0.0).inputs(ragged(30), 0)
    assert 0 < len(inputs.target_N) < 30
    assert inputs.weight_N.tolist() == [2.5] * len(inputs.target_N)
    loss = summed_loss(constant_scores(network()), inputs) / inputs.count
    assert loss.item() == pytest.approx(len(inputs.target_N) * 2.5 * math.log(VOCABULARY) / 30, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shifted", [False, True])
def test_loss_equals_its_formula_on_a_plain_network(shifted: bool) -> None:
    """Each sample alone, through the slow network without a mask: sum of CE / p over masked, over all tokens."""
    model, batch = network(), ragged(7, 5)
    objective = MaskedDiffusion(mask_token_id=MASK, shifted=shifted, random_length=0.0)
    inputs = objective.inputs(batch, seed=4)
    expected = 0.0
    for b, (sample, length) in enumerate(batch.samples()):
        [t] = Independent().draw(4, sample).tolist()
        p = (1 - 1e-3) * t + 1e-3
        noised = inputs.ids_BR[b, :length].tolist()
        logits = oracle_logits(model, noised, range(length), lambda kind, query, key: True, length)
        for at, (seen, token) in enumerate(zip(noised, batch.ids_BL[b].tolist(), strict=False)):
            assert seen in (token, MASK)
            if seen == MASK:
                row = max(at - 1, 0) if shifted else at  # the first token keeps its own row
                expected -= float(logits[row].log_softmax(-1)[token]) / p
    assert inputs.count == 12
    assert summed_loss(model, inputs).item() == pytest.approx(expected, rel=1e-10)


def test_each_token_counts_one_in_the_mean() -> None:
    """E[1 masked / p] = 1: 4000 samples of 8 tokens; the standard error is about 0.02 with eps = 0.05."""
    objective = MaskedDiffusion(mask_token_id=MASK, eps=0.05, random_length=0.0)
    inputs = objective.inputs(Batch.of([[1] * 8] * 4000), 0)
    assert float(inputs.weight_N.sum()) / inputs.count == pytest.approx(1, abs=0.06)
    masked = torch.bincount(inputs.row_N, minlength=8) / 4000
    assert (masked - 0.525).abs().max() < 0.04  # (1 - eps) / 2 + eps at every position, five standard errors


def test_a_share_of_the_steps_is_cropped() -> None:
    objective = MaskedDiffusion(mask_token_id=MASK, random_length=0.25)
    lengths = [objective.inputs(ragged(12, 6, step=step), 0).valid_BR.sum(1).tolist() for step in range(400)]
    cropped = [pair for pair in lengths if pair != [12, 6]]
    assert 50 < len(cropped) < 134  # 92, as those cropped to the full length do not show; five standard deviations
    assert {pair[0] for pair in cropped} == set(range(1, 12))
    assert {pair[1] for pair in cropped} == set(range(1, 7))
    assert all(math.ceil(pair[0] / 2) == pair[1] for pair in cropped)  # one draw for the step
    never = MaskedDiffusion(mask_token_id=MASK, random_length=0.0)
    assert all(never.inputs(ragged(12, step=step), 0).ids_BR.shape[1] == 12 for step in range(50))


def test_prompts_are_not_masked_in_pre_training_either() -> None:
    batch = ragged(9, 6, prompts=True)
    inputs = MaskedDiffusion(mask_token_id=MASK, times=At(1.0), random_length=0.0).inputs(batch, 0)
    assert ((inputs.ids_BR == MASK) == batch.loss_mask_BL).all()
    assert inputs.count == 6 + 4


def test_a_causal_mask_is_opened_step_by_step() -> None:
    objective = MaskedDiffusion(mask_token_id=MASK, opening_steps=10)
    shares = []
    for step in (0, 5, 9, 10, 11):
        inputs = objective.inputs(ragged(40, step=step), 0)
        seen = inputs.visibility.mask(inputs.labels, inputs.labels)[0]
        assert seen.tril().sum() == 40 * 41 / 2
        shares.append(float(seen.triu(1).sum()) / (40 * 39 / 2))
    assert shares == [0, pytest.approx(0.5, abs=0.1), pytest.approx(0.9, abs=0.06), 1, 1]
    inputs = objective.inputs(ragged(5, step=10), 0)
    request = Request(inputs.visibility, inputs.labels, inputs.labels, inputs.valid_BR, inputs.valid_BR)
    assert simplify(request).visibility == bidirectional()


# ---- fine-tuning ----------------------------------------------------------------------------------


def test_tuning_by_hand() -> None:
    """Answers of 3 and 1 tokens, all masked with p = 1: the mean over two samples of ln 31."""
    inputs = MaskedDiffusionTuning(mask_token_id=MASK, times=At(1.0)).inputs(
        Batch.of([[1, 2, 3, 4, 5], [6, 7]], [2, 1]), 0
    )
    assert inputs.ids_BR.tolist() == [[1, 2, MASK, MASK, MASK], [6, MASK, 0, 0, 0]]
    assert inputs.weight_N.tolist() == [1 / 3] * 3 + [1]
    assert inputs.count == 2
    assert summed_loss(constant_scores(network()), inputs).item() / 2 == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_end_tokens_are_masked_scored_and_counted() -> None:
    """Up to 6 tokens: answers of 4 and 5 tokens, of which 1 and 4 are end tokens."""
    objective = MaskedDiffusionTuning(mask_token_id=MASK, times=At(1.0), length=6, end_token_id=END)
    inputs = objective.inputs(Batch.of([[1, 2, 3, 4, 5], [6, 7]], [2, 1]), 0)
    assert inputs.ids_BR.tolist() == [[1, 2, MASK, MASK, MASK, MASK], [6, MASK, MASK, MASK, MASK, MASK]]
    assert inputs.target_N.tolist() == [3, 4, 5, END, 7, END, END, END, END]
    assert inputs.weight_N.tolist() == [1 / 4] * 4 + [1 / 5] * 5
    assert inputs.labels["position"].tolist() == [list(range(6))] * 2
    assert inputs.valid_BR.all()


def test_end_tokens_do_not_depend_on_the_batch() -> None:
    objective = MaskedDiffusionTuning(mask_token_id=MASK, length=12, end_token_id=END)
    batch = ragged(9, 4, prompts=True)
    both, alone = objective.inputs(batch, 0), objective.inputs(batch.only([1]), 0)
    assert both.ids_BR[1].tolist() == alone.ids_BR[0].tolist()


def test_of_several_turns_one_is_learnt_and_the_rest_left_out() -> None:
    """Answers at 2-3, 6 and 9-11; each is drawn about equally often in 300 samples (four standard deviations)."""
    batch = Batch.of([list(range(1, 13))] * 300)
    learnt_L = torch.tensor([0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1]).bool()
    batch = batch.replace(loss_mask_BL=learnt_L.expand(300, 12))
    inputs = MaskedDiffusionTuning(mask_token_id=MASK, times=At(1.0)).inputs(batch, 0)
    seen = {(4, 2): 0, (7, 1): 0, (12, 3): 0}
    for valid_L, ids_L in zip(inputs.valid_BR, inputs.ids_BR, strict=True):
        seen[int(valid_L.sum()), int((ids_L == MASK).sum())] += 1
    assert min(seen.values()) > 100 - 4 * 8.2
    assert sorted(set(inputs.weight_N.tolist())) == [1 / 3, 1 / 2, 1]


# ---- times ----------------------------------------------------------------------------------------


def test_strata_are_all_visited() -> None:
    times = Stratified(strata=4)
    for begin in (0, 4, 40):
        drawn = [float(times.draw(0, sample)) for sample in range(begin, begin + 4)]
        assert sorted(int(4 * t) for t in drawn) == [0, 1, 2, 3]
    within = times.draw(7, 3, count=8)
    assert sorted((4 * within).long().tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({int(4 * float(times.draw(0, sample))) for sample in range(0, 80, 4)}) == 4


def test_antithetic_pairs_mirror_each_other() -> None:
    times = Antithetic()
    for sample in (0, 6):
        torch.testing.assert_close(times.draw(1, sample, 3), 1 - times.draw(1, sample + 1, 3))
    assert times.draw(1, 0) != times.draw(1, 2)


@pytest.mark.parametrize("times", [Independent(), Stratified(), Antithetic()])
def test_times_are_even(times: Times) -> None:
    """Kolmogorov's distance of 4000 draws from the even distribution: below 0.031 with probability 0.999."""
    drawn = torch.cat([times.draw(0, sample) for sample in range(4000)]).sort().values
    distance = (drawn - torch.arange(1, 4001) / 4000).abs().max()
    assert distance < 0.031
    assert torch.equal(times.draw(0, 17), times.draw(0, 17))


def test_stratified_times_vary_less() -> None:
    """The variance of the mean of 8: 1/96 for independent times, 1/96/64 for strata."""

    def variance(times: Times) -> float:
        means = [sum(float(times.draw(0, 8 * turn + i)) for i in range(8)) / 8 for turn in range(100)]
        return float(torch.tensor(means).var())

    assert variance(Stratified(strata=8)) < variance(Independent()) / 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MaskedDiffusion(mask_token_id=MASK, eps=0.0),
            "eps is 0.0: give a number above 0 and at most 1, such as 1e-3.",
        ),
        (
            lambda: MaskedDiffusion(mask_token_id=MASK, random_length=2),
            "random_length is 2: give the share of steps to crop, from 0 to 1.",
        ),
        (
            lambda: MaskedDiffusion(mask_token_id=MASK, opening_steps=-1),
            "opening_steps is -1: give a number of steps, or 0 to see all at once.",
        ),
        (lambda: Stratified(strata=0), "strata is 0: give a whole number above 0, such as the samples of a step."),
        (
            lambda: MaskedDiffusionTuning(mask_token_id=MASK, length=5),
            "end_token_id is None beside the length 5: give the token that ends an answer.",
        ),
        (
            lambda: MaskedDiffusion(mask_token_id=MASK).inputs(Batch.of([[1], [2, MASK]], first_sample=7), 0),
            "sample 8 has the mask token 30 at position 1: take it out of the data, or give the token that stands for "
            "masks alone.",
        ),
        (
            lambda: MaskedDiffusionTuning(mask_token_id=MASK).inputs(Batch.of([[1, 2]], [2], first_sample=3), 0),
            "sample 3 has no token to learn: give each sample an answer.",
        ),
        (
            lambda: MaskedDiffusionTuning(mask_token_id=MASK, length=2, end_token_id=END).inputs(ragged(3), 0),
            "a sample has 3 tokens, but length is 2: raise it or leave it out.",
        ),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message
