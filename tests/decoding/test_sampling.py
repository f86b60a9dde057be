"""How a token is chosen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError

LOGITS_V = torch.tensor([2.0, 1.5, 0.0, -0.5, 1.0, -2.0, 0.3, -math.inf], dtype=torch.float64)
DRAWS = 20_000
CRITICAL = 22.46  # chi-squared, 6 degrees of freedom: exceeded by chance once in 1000


def chi_squared(counts_V: Tensor, probabilities_V: Tensor) -> float:
    """Pearson's statistic over the tokens that can be drawn; infinite if another one was."""
    possible_V = probabilities_V > 0
    if counts_V[~possible_V].any():
        return math.inf
    expected_V = probabilities_V[possible_V] * counts_V.sum()
    return float(((counts_V[possible_V] - expected_V) ** 2 / expected_V).sum())


@pytest.mark.parametrize("rows", [4, 5000], ids=["few generators", "many generators"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_draws_follow_the_softmax(temperature: float, rows: int) -> None:
    """20000 draws. A temperature that is off by 10 % is found with a power above 0.999.

    Its non-centrality is at least 60 here, and a non-central chi-squared variable with 6 degrees of freedom exceeds the
    critical value with probability 0.9997 then.
    """
    sampling = Sampling(temperature=temperature, seed=11)
    generators = sampling.generators(range(rows))
    counts_V = torch.zeros(len(LOGITS_V), dtype=torch.float64)
    for _ in range(DRAWS // rows):
        token_B, _ = sampling.choose(LOGITS_V.expand(rows, -1), generators)
        counts_V += torch.bincount(token_B, minlength=len(LOGITS_V))
    right_V = (LOGITS_V / temperature).softmax(0)
    assert chi_squared(counts_V, right_V) < CRITICAL
    for wrong in (0.9, 1.1):
        wrong_V = (LOGITS_V / (temperature * wrong)).softmax(0)
        assert DRAWS * float(((right_V - wrong_V) ** 2 / wrong_V).nansum()) > 60, "the power is not as stated"
        assert chi_squared(counts_V, wrong_V) > CRITICAL


def test_successive_draws_of_a_row_are_independent() -> None:
    """Pairs of draws: 4 cells, 3 degrees of freedom, critical value 16.27 (once in 1000)."""
    sampling = Sampling(temperature=1.0, seed=5)
    generators = sampling.generators(range(5000))
    even_BV = torch.zeros(5000, 2)
    first_B, _ = sampling.choose(even_BV, generators)
    second_B, _ = sampling.choose(even_BV, generators)
    assert chi_squared(torch.bincount(2 * first_B + second_B, minlength=4).double(), torch.full((4,), 0.25)) < 16.27


def test_temperature_0_takes_the_most_probable() -> None:
    logits_BV = torch.randn(4, 30)
    sampling = Sampling()
    token_B, log_prob_B = sampling.choose(logits_BV, sampling.generators(range(4)))
    assert token_B.tolist() == logits_BV.argmax(-1).tolist()
    torch.testing.assert_close(log_prob_B, logits_BV.log_softmax(-1).amax(-1))


def test_a_low_temperature_approaches_the_most_probable() -> None:
    sampling = Sampling(temperature=1e-4)
    token_B, log_prob_B = sampling.choose(LOGITS_V.expand(50, -1), sampling.generators(range(50)))
    assert token_B.tolist() == [0] * 50
    assert log_prob_B.tolist() == [0.0] * 50


def test_half_precision_is_widened() -> None:
    logits_BV = torch.randn(2, 9, dtype=torch.bfloat16)
    assert Sampling().distribution(logits_BV)[1].dtype == torch.float32
    assert Sampling(temperature=1.0).distribution(logits_BV)[1].dtype == torch.float64


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.2, 3), st.integers(1, 12), st.floats(0.05, 1))
def test_filters_keep_what_a_plain_loop_keeps(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits_V = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kept: list[int] = []
    order = sorted(range(10), key=lambda token: -float(logits_V[token]))[:top_k]
    weight = {token: math.exp(float(logits_V[token]) / temperature) for token in order}
    for token in order:
        if sum(weight[other] for other in kept) < top_p * sum(weight.values()) - 1e-9:
            kept.append(token)
    expected = [weight[token] / sum(weight[other] for other in kept) if token in kept else 0.0 for token in range(10)]

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    log_probs_V = sampling.distribution(logits_V[None])[1][0]
    torch.testing.assert_close(log_probs_V.exp(), torch.tensor(expected, dtype=torch.float64))
    token_B, log_prob_B = sampling.choose(logits_V.expand(20, -1), sampling.generators(range(20)))
    assert set(token_B.tolist()) <= set(kept)
    assert log_prob_B.tolist() == log_probs_V[token_B].tolist()


@pytest.mark.parametrize("min_p", [0.02, 0.1, 0.3, 1.0])
def test_min_p_draws_what_is_probable_enough_and_nothing_else(min_p: float) -> None:
    """20000 draws. The rarest token that may be drawn has a probability above 0.03 here.

    So it is missed with a probability below exp(-600). The counts follow what is left of the softmax.
    """
    sampling = Sampling(temperature=1.0, min_p=min_p, seed=2)
    softmax_V = LOGITS_V.softmax(0)
    right_V = softmax_V * (softmax_V >= min_p * softmax_V.max())
    right_V /= right_V.sum()
    token_B, _ = sampling.choose(LOGITS_V.expand(DRAWS, -1), sampling.generators(range(DRAWS)))
    counts_V = torch.bincount(token_B, minlength=len(LOGITS_V))
    assert (counts_V > 0).tolist() == (right_V > 0).tolist()
    assert chi_squared(counts_V, right_V) < CRITICAL


@settings(deadline=None, max_examples=50)
@given(
    history=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=20), min_size=1, max_size=4),
    temperature=st.sampled_from([0.0, 0.4, 1.0, 1.7]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.05, 1),
    min_p=st.none() | st.floats(0.01, 1),
    penalty=st.sampled_from([1.0, 1.3, 0.7, 2]),
    seed=st.integers(0, 999),
)
def test_ragged_rows_equal_transformers_one_by_one(
    history: list[list[int]],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BV = 3 * torch.randn(len(history), 12, dtype=torch.float64, generator=generator)
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(float(penalty))])
    if temperature > 0:
        theirs.append(TemperatureLogitsWarper(temperature))
        theirs.extend([TopKLogitsWarper(top_k)] if top_k is not None else [])
        theirs.extend([TopPLogitsWarper(top_p)] if top_p is not None else [])
        theirs.extend([MinPLogitsWarper(min_p)] if min_p is not None else [])
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=seed
    )
    log_probs_BV = sampling.distribution(logits_BV, history)[1]
    token_B, log_prob_B = sampling.choose(logits_BV, sampling.generators(range(len(history))), history)
    for row, ids in enumerate(history):
        expected_V = theirs(torch.tensor([ids]), logits_BV[[row]])[0].log_softmax(-1)
        torch.testing.assert_close(log_probs_BV[row], expected_V)
        alone = sampling.choose(logits_BV[[row]], sampling.generators([row]), [ids])
        assert alone[0].item() == token_B[row]
        assert log_prob_B[row] == log_probs_BV[row, token_B[row]] > -math.inf
        if temperature == 0:
            assert token_B[row] == expected_V.argmax()


def test_repetition_penalty_is_what_its_description_says() -> None:
    logits_BV = torch.tensor([[2.0, 1.5, -1.0, 0.0, -2.0]])
    sampling = Sampling(repetition_penalty=2)
    log_probs_BV = sampling.distribution(logits_BV, [[0, 2, 0, 3]])[1]
    torch.testing.assert_close(log_probs_BV, torch.tensor([[1.0, 1.5, -2.0, 0.0, -2.0]]).log_softmax(-1))
    assert sampling.choose(logits_BV, sampling.generators([0]), [[0, 2, 0, 3]])[0].tolist() == [1]
    assert sampling.choose(logits_BV, sampling.generators([0]), [[4]])[0].tolist() == [0]


def test_only_a_repetition_penalty_asks_for_the_ids_before() -> None:
    logits_BV = torch.randn(2, 9)
    full = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
    for options in ({}, full):
        sampling = Sampling(**options)
        assert torch.equal(sampling.distribution(logits_BV)[1], sampling.distribution(logits_BV, [[1, 2], [3]])[1])
        with pytest.raises(UserError, match=r"^repetition_penalty is 1\.2 without ids before: give history\.$"):
            Sampling(repetition_penalty=1.2, **options).choose(logits_BV, sampling.generators([0, 1]))


def test_a_row_draws_alike_in_every_batch() -> None:
    sampling = Sampling(temperature=1.3, seed=3)
    logits_BV = torch.randn(6, 40)
    together = sampling.generators(range(6))
    batch = [sampling.choose(logits_BV, together)[0].tolist() for _ in range(3)]
    for row in range(6):
        alone = sampling.generators([row])
        assert [sampling.choose(logits_BV[[row]], alone)[0].item() for _ in range(3)] == [step[row] for step in batch]


def test_rows_and_seeds_draw_differently() -> None:
    numbers = {
        torch.rand(1, generator=generator).item()
        for seed in range(30)
        for generator in Sampling(seed=seed).generators(range(30))
    }
    assert len(numbers) == 900


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.5, "temperature is -0.5: give 0 for the most probable token, or a number above 0 to"),
        ("temperature", math.nan, "temperature is nan: give a finite number."),
        ("temperature", math.inf, "temperature is inf: give a finite number."),
        ("temperature", "hot", "temperature is 'hot': give a number."),
        ("top_k", 0, "top_k is 0: give a whole number above 0, or None to keep every token."),
        ("top_k", 2.5, "top_k is 2.5: give a whole number"),
        ("top_p", 0.0, "top_p is 0.0: give a probability above 0 and at most 1, or None to keep every token."),
        ("top_p", 1.2, "top_p is 1.2: give a probability"),
        ("min_p", 0, "min_p is 0: give a probability above 0 and at most 1, or None to keep every token."),
        ("min_p", math.nan, "min_p is nan: give a finite number."),
        ("repetition_penalty", 0.0, "repetition_penalty is 0.0: give a number above 0, such as 1.1, or 1 for no penal"),
        ("repetition_penalty", None, "repetition_penalty is None: give a number."),
        ("seed", 0.5, "seed is 0.5: give a whole number."),
    ],
)
def test_values_that_cannot_be_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Sampling(**{field: value})
    assert str(caught.value).startswith(message)
