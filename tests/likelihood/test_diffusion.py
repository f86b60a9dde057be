"""The bound of masked diffusion against enumeration, against the mean over orders, and within its own error."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from anyorder.checkpoints.adapt import adapt
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import (
    PUBLISHED,
    Bound,
    Enumeration,
    MonteCarlo,
    answer_log_prob,
    diffusion_log_prob,
)
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.visibility import bidirectional, causal, not_after
from tests.model.networks import VOCABULARY, network, random_ids

MASK = VOCABULARY - 1
DIFFUSION = diffusion(MASK)

STUDENT = {15: 2.131, 31: 2.040, 63: 1.998}
"""Of Student's t with so many degrees of freedom, what it exceeds on either side with a probability of 0.05."""


@pytest.fixture
def model(float64: None) -> Llama:
    return network()


@pytest.fixture
def text() -> list[int]:
    return [token_id % MASK for token_id in random_ids(9)[0]]


@torch.no_grad()
def shown_log_probs(model: Llama, ids: Sequence[int], masked: Sequence[int], shifted: bool = False) -> dict[int, float]:
    """The log-probability of each masked token of one text, given those that are shown."""
    noised = torch.tensor([[MASK if at in masked else token for at, token in enumerate(ids)]])
    views = model.prepare(bidirectional(), {"position": torch.arange(len(ids))[None]})
    log_probs_LV = model.logits(model.hidden(noised, views))[0].log_softmax(-1)
    return {at: log_probs_LV[max(at - 1, 0) if shifted else at, ids[at]].item() for at in masked}


def mean_over_orders(model: Llama, ids: Sequence[int], scored: Sequence[int]) -> float:
    """Written one by one, in every order."""
    of_orders = []
    for order in itertools.permutations(scored):
        total = 0.0
        for step, at in enumerate(order):
            total += shown_log_probs(model, ids, order[step:])[at]
        of_orders.append(total)
    return statistics.fmean(of_orders)


def by_counts(model: Llama, ids: Sequence[int], scored: Sequence[int], chance_of: dict[int, float]) -> float:
    """The mean of the weighted sums where m tokens are masked with the chance `chance_of[m]`."""
    total, n = 0.0, len(scored)
    for count, chance in chance_of.items():
        sums = [
            n / count * sum(shown_log_probs(model, ids, masked).values())
            for masked in itertools.combinations(scored, count)
        ]
        total += chance * statistics.fmean(sums)
    return total


# ------------------------------------------------------------------------------------------- the bound itself


def test_enumeration_is_the_mean_over_counts_and_over_orders(model: Llama, text: list[int]) -> None:
    scored = [2, 3, 5, 8]
    [bound] = diffusion_log_prob(model, [text], [scored], mode=DIFFUSION, method=Enumeration())
    assert bound == Bound(
        log_prob=bound.log_prob, standard_error=0.0, tokens=4, copies=15, exact=True
    )  # fmt: skip
    assert bound.log_prob == pytest.approx(by_counts(model, text, scored, dict.fromkeys(range(1, 5), 0.25)), rel=1e-12)
    assert bound.log_prob == pytest.approx(mean_over_orders(model, text, scored), rel=1e-12)
    assert bound.perplexity == pytest.approx(math.exp(-bound.log_prob / 4))


def test_padding_of_a_tokenizer_is_not_scored(model: Llama, text: list[int]) -> None:
    options: dict[str, Any] = {"mode": DIFFUSION, "method": Enumeration()}
    encoded = {"input_ids": torch.tensor([[1, 1, *text]]), "attention_mask": torch.tensor([[0, 0, *[1] * len(text)]])}
    expected = diffusion_log_prob(model, [text], [[4, 7]], **options)
    assert diffusion_log_prob(model, encoded, [[4, 7]], **options) == expected
    prompts = {name: rows[:, :5] for name, rows in encoded.items()}
    expected = answer_log_prob(model, [text[:3]], [text[3:5]], **options)
    assert answer_log_prob(model, prompts, [text[3:5]], **options) == expected


def test_the_network_knows_how_it_writes(model: Llama, text: list[int]) -> None:
    """Its default mode, or masked diffusion where that is another one."""
    for modes, default, taken in (
        ((blocks(MASK, 3), DIFFUSION), "blocks", blocks(MASK, 3)),
        ((LEFT_TO_RIGHT, DIFFUSION), "left-to-right", DIFFUSION),
    ):
        able = adapt(model, modes, default)
        bounds = [diffusion_log_prob(able, [text], [[4, 7]], method=Enumeration(), mode=mode) for mode in (None, taken)]
        assert bounds[0] == bounds[1]
    with pytest.raises(UserError, match=r"this network writes by 'left-to-right', not by 'diffusion': train it"):
        diffusion_log_prob(model, [text], [[4, 7]])


def test_shifted_logits_are_read_one_row_before(model: Llama, text: list[int]) -> None:
    mode = diffusion(MASK, shifted=True)
    for at in (0, 4):
        [bound] = diffusion_log_prob(model, [text], [[at]], mode=mode)
        assert bound.log_prob == pytest.approx(shown_log_probs(model, text, [at], shifted=True)[at], rel=1e-12)
        assert (bound.exact, bound.copies) == (True, 1)  # of one token nothing needs to be drawn


def test_guidance_leans_away_from_the_text_without_what_was_given(model: Llama, text: list[int]) -> None:
    scored = [4, 5, 6, 7, 8]
    [[weights]] = [next(iter(MonteCarlo(samples=2, draws="independent").groups([5], torch.Generator())))]
    masked = [at for at, weight in zip(scored, weights, strict=True) if weight]
    noised = [MASK if at in masked else token for at, token in enumerate(text)]
    blind = [MASK if at < 4 else token for at, token in enumerate(noised)]
    views = model.prepare(bidirectional(), {"position": torch.arange(9).expand(2, -1)})
    with torch.no_grad():
        logits_CLV = model.logits(model.hidden(torch.tensor([noised, blind]), views))
    log_probs_LV = (logits_CLV[1] + 2.5 * (logits_CLV[0] - logits_CLV[1])).log_softmax(-1)
    expected = sum(5 / len(masked) * log_probs_LV[at, text[at]].item() for at in masked)

    class Once(MonteCarlo):
        def groups(self, sizes: Sequence[int], generator: torch.Generator):  # type: ignore[no-untyped-def]
            yield [weights]

    [bound] = diffusion_log_prob(
        model, [text], [scored], mode=DIFFUSION, method=Once(samples=2, draws="independent"), guidance=1.5
    )
    assert bound.log_prob == pytest.approx(expected, rel=1e-12)


def test_a_ragged_batch_is_its_texts_one_by_one(model: Llama) -> None:
    texts = [[token_id % MASK for token_id in ids] for ids in random_ids(5, 11, 7)]
    scored = [range(2, 5), [0, 3, 10], range(1, 7)]
    for mode in (DIFFUSION, diffusion(MASK, shifted=True), blocks(MASK, 3), blocks(MASK, 3, shifted=True)):
        together = diffusion_log_prob(model, texts, scored, mode=mode, method=Enumeration(), batch_size=5)
        alone = [
            diffusion_log_prob(model, [ids], [at], mode=mode, method=Enumeration())[0]
            for ids, at in zip(texts, scored, strict=True)
        ]
        for one, other in zip(together, alone, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, rel=1e-12)


def test_how_many_copies_are_read_at_a_time_does_not_matter(model: Llama, text: list[int]) -> None:
    counted: list[int] = []
    options = {"mode": DIFFUSION, "method": MonteCarlo(samples=48, group=8)}
    [one] = answer_log_prob(model, [text[:3]], [text[3:]], batch_size=7, on_copies=counted.append, **options)
    [other] = answer_log_prob(model, [text[:3]], [text[3:]], batch_size=48, **options)
    assert one.log_prob == pytest.approx(other.log_prob, rel=1e-12)
    assert (sum(counted), one.copies, one.exact) == (48, 48, False)


def test_a_text_draws_by_its_number(model: Llama, text: list[int]) -> None:
    options = {"mode": DIFFUSION, "method": MonteCarlo(samples=32)}
    together = diffusion_log_prob(model, [text] * 3, [[2, 5, 6, 8]] * 3, **options)
    [third] = diffusion_log_prob(model, [text], [[2, 5, 6, 8]], sample_ids=[2], **options)
    assert third.log_prob == pytest.approx(together[2].log_prob, rel=1e-12)
    assert third.log_prob != pytest.approx(together[0].log_prob, rel=1e-12)


# ------------------------------------------------------------------------------------------- block by block


def test_one_block_is_masked_diffusion(model: Llama, text: list[int]) -> None:
    options = {"method": Enumeration()}
    [whole] = diffusion_log_prob(model, [text], [[4, 6, 7]], mode=DIFFUSION, **options)
    [block] = diffusion_log_prob(model, [text], [[4, 6, 7]], mode=blocks(MASK, 9), **options)
    assert block.log_prob == pytest.approx(whole.log_prob, rel=1e-12)


@torch.no_grad()
def test_blocks_add_up_each_after_clean_ones(model: Llama, text: list[int]) -> None:
    mode, scored = blocks(MASK, 3), [2, 4, 5, 7, 8]
    [bound] = diffusion_log_prob(model, [text], [scored], mode=mode, method=Enumeration())
    expected = 0.0
    for block in ([2], [4, 5], [7, 8]):
        end = block[-1] // 3 * 3 + 3
        views = model.prepare(not_after("position", div=3), {"position": torch.arange(end)[None]})
        for count in range(1, len(block) + 1):
            for masked in itertools.combinations(block, count):
                noised = torch.tensor([[MASK if at in masked else token for at, token in enumerate(text[:end])]])
                log_probs_LV = model.logits(model.hidden(noised, views))[0].log_softmax(-1)
                chance = 1 / len(block) / math.comb(len(block), count)
                expected += chance * len(block) / count * sum(log_probs_LV[at, text[at]].item() for at in masked)
    assert bound.log_prob == pytest.approx(expected, rel=1e-10)


@torch.no_grad()
def test_blocks_of_one_token_give_the_log_probability_itself(model: Llama, text: list[int]) -> None:
    [bound] = diffusion_log_prob(model, [text], [range(3, 9)], mode=blocks(MASK, 1))
    expected = 0.0
    for at in range(3, 9):
        views = model.prepare(causal(), {"position": torch.arange(at + 1)[None]})
        logits_LV = model.logits(model.hidden(torch.tensor([[*text[:at], MASK]]), views))[0]
        expected += logits_LV[-1].log_softmax(-1)[text[at]].item()
    assert bound.log_prob == pytest.approx(expected, rel=1e-10)
    assert (bound.exact, bound.standard_error, bound.copies) == (True, 0.0, 1)


@torch.no_grad()
def test_a_shifted_block_begins_after_the_clean_block_before(model: Llama, text: list[int]) -> None:
    mode = blocks(MASK, 3, shifted=True)
    [bound] = diffusion_log_prob(model, [text], [[6]], mode=mode)
    views = model.prepare(not_after("position", div=3), {"position": torch.arange(6)[None]})
    log_probs_LV = model.logits(model.hidden(torch.tensor([text[:6]]), views))[0].log_softmax(-1)
    assert bound.log_prob == pytest.approx(log_probs_LV[5, text[6]].item(), rel=1e-10)


# ------------------------------------------------------------------------------------------- draws


def unbiased() -> list[MonteCarlo]:
    return [
        MonteCarlo(samples=128, draws="stratified", group=8),
        MonteCarlo(samples=96, draws="stratified", group=3),
        MonteCarlo(samples=64, draws="antithetic"),
        MonteCarlo(samples=64, draws="independent"),
    ]


def table(model: Llama, ids: Sequence[int], scored: Sequence[int]) -> Callable[[Sequence[float]], float]:
    """What a masked copy is worth, without asking the network again."""
    n = len(scored)
    log_probs = {
        chosen: [shown_log_probs(model, ids, [scored[i] for i in chosen])[scored[i]] for i in chosen]
        for count in range(1, n + 1)
        for chosen in itertools.combinations(range(n), count)
    }

    def worth(weights: Sequence[float]) -> float:
        chosen = tuple(i for i, weight in enumerate(weights) if weight)
        return sum(weights[i] * log_prob for i, log_prob in zip(chosen, log_probs[chosen], strict=True))

    return worth


@pytest.mark.parametrize("tokens", range(2, 9))
def test_estimates_are_within_their_own_error_of_the_enumeration(model: Llama, tokens: int) -> None:
    """Coverage of the 95 % intervals, and the mean of all estimates, over 300 seeds for each way of drawing.

    Power: a bias of half a standard error lowers the coverage from 0.95 to 0.92 and moves the mean of 300 estimates
    by 8.7 of its own errors, which the second check, at 4.5, misses with a probability of 1e-5.
    """
    [ids] = random_ids(tokens + 3)
    ids = [token_id % MASK for token_id in ids]
    scored = range(3, tokens + 3)
    [exact] = diffusion_log_prob(model, [ids], [scored], mode=DIFFUSION, method=Enumeration())
    worth = table(model, ids, scored)
    repeats = 300
    for method in unbiased():
        groups = method.samples // method.group
        within, deviations = 0, []
        for seed in range(repeats):
            generator = torch.Generator().manual_seed(1000 * tokens + seed)
            sums = [sum(map(worth, group)) for group in method.groups([tokens], generator)]
            mean, error = statistics.fmean(sums), statistics.stdev(sums) / math.sqrt(groups)
            within += abs(mean - exact.log_prob) <= STUDENT[groups - 1] * error
            deviations.append(mean - exact.log_prob)
        assert 0.88 <= within / repeats <= 0.995, (method, within / repeats)
        assert abs(statistics.fmean(deviations)) < 4.5 * statistics.stdev(deviations) / math.sqrt(repeats), method


def test_the_function_gives_that_mean_and_that_error(model: Llama, text: list[int]) -> None:
    scored = range(4, 9)
    worth = table(model, text, scored)
    for method in (*unbiased(), PUBLISHED):
        bounds = diffusion_log_prob(model, [text, text], [scored, scored], mode=DIFFUSION, method=method)
        assert bounds[0].log_prob != bounds[1].log_prob  # each text draws by its number
        for bound, generator in zip(bounds, Sampling(seed=0).generators(range(2)), strict=True):
            sums = [sum(map(worth, group)) for group in method.groups([5], generator)]
            assert bound.log_prob == pytest.approx(statistics.fmean(sums), rel=1e-10)
            assert bound.standard_error == pytest.approx(statistics.stdev(sums) / math.sqrt(len(sums)), rel=1e-8)


def test_spreading_and_pairing_lower_the_error(model: Llama, text: list[int]) -> None:
    """The spread of 1000 estimates from sixteen copies each; its own error is 2.3 %, that of a quotient 3.2 %."""
    worth = table(model, text, range(3, 9))
    spread = {}
    for method in (
        MonteCarlo(samples=16, draws="independent"),
        MonteCarlo(samples=32, draws="stratified", group=16),
        MonteCarlo(samples=16, draws="antithetic"),
    ):
        estimates = []
        for seed in range(1000):
            groups = method.groups([6], torch.Generator().manual_seed(seed))
            of_sixteen = itertools.islice(groups, 16 // method.group)
            estimates.append(statistics.fmean(sum(map(worth, group)) for group in of_sixteen))
        spread[method.draws] = statistics.stdev(estimates)
    assert spread["stratified"] < 0.9 * spread["independent"], spread
    assert spread["antithetic"] < 0.9 * spread["independent"], spread


def published_chances(n: int, group: int = 16) -> dict[int, float]:
    """Of each count in the published scheme: a whole number, or a half that is rounded to an even one."""
    chances = dict.fromkeys(range(1, n + 1), 0.0)
    for first in range(1, n + 1):
        for index in range(group):
            twice = 2 * first + 2 * n * index // group  # exact where n * 2 / group is whole
            count = twice // 2 + (twice % 2) * (twice // 2 % 2)
            chances[(count - 1) % n + 1] += 1 / n / group
    return chances


def test_the_published_scheme_has_its_bias(model: Llama) -> None:
    [ids] = random_ids(11)
    ids = [token_id % MASK for token_id in ids]
    scored = range(3, 11)
    chances = published_chances(8)
    assert [chances[count] for count in range(1, 9)] == [1 / 16, 3 / 16] * 4  # even numbers three times as often
    drawn = [0] * 9
    for seed in range(200):
        for group in PUBLISHED.groups([8], torch.Generator().manual_seed(seed)):
            for weights in group:
                drawn[sum(weight > 0 for weight in weights)] += 1
    shares = [count / sum(drawn) for count in drawn[1:]]
    assert shares == pytest.approx([1 / 16, 3 / 16] * 4, abs=0.01)

    worth = table(model, ids, scored)
    [exact] = diffusion_log_prob(model, [ids], [scored], mode=DIFFUSION, method=Enumeration())
    biased = by_counts(model, ids, scored, chances)
    sums = [
        sum(map(worth, group))
        for seed in range(400)
        for group in PUBLISHED.groups([8], torch.Generator().manual_seed(seed))
    ]
    error = statistics.stdev(sums) / math.sqrt(len(sums))
    assert abs(statistics.fmean(sums) - biased) < 4 * error
    assert abs(biased - exact.log_prob) > 6 * error  # which tells the two apart


# ------------------------------------------------------------------------------------------- bad input


def test_mistakes_are_told_with_the_remedy(model: Llama, text: list[int]) -> None:
    def refused(
        message: str,
        scored: Sequence[int] = (3, 4),
        ids: Sequence[int] = text,
        mode: Mode = DIFFUSION,
        **options: object,
    ) -> None:
        with pytest.raises(UserError, match=message):
            diffusion_log_prob(model, [ids], [scored], mode=mode, **options)

    refused(r"cache is 'dual', which keeps keys .* outdated.*: give 'none'\.", cache="dual")
    refused(r"the mode is 'left-to-right', which has no mask token: .*anyorder\.log_prob", mode=LEFT_TO_RIGHT)
    refused(r"guidance is 0\.5 with blocks of 4: leave it out\.", mode=blocks(MASK, 4), guidance=0.5)
    refused(r"positions of text 0 are \[4, 3\]: give rising positions from 0 to 8, at least one\.", scored=[4, 3])
    refused(r"positions of text 0 are \[\]: ", scored=[])
    refused(r"positions of text 0 are \[3, 9\]: ", scored=[3, 9])
    remedy = r"give ids from 0 to 30, from the tokenizer of this network\."
    refused(rf"text 0 has the token id 99: {remedy}", ids=[1, 2, 3, 4, 99])
    refused(r"text 0 has the mask token 30 among those scored: write it first\.", ids=[1, 2, 3, 4, MASK])
    long = text * 3
    refused(
        r"13 tokens are scored together, which are 8191 sets of masks: give at most 12, .* or use MonteCarlo\.",
        scored=range(13), ids=long, method=Enumeration(),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"there are 2 texts and positions for 1: give positions for each\."):
        diffusion_log_prob(model, [text, text], [[1]], mode=DIFFUSION)
    with pytest.raises(UserError, match=r"there are 1 prompts and 2 answers: give one answer for each\."):
        answer_log_prob(model, [[1]], [[2], [3]], mode=DIFFUSION)
    with pytest.raises(UserError, match=r"samples is 16 in groups of 16: give a multiple of 16 of at least 32, "):
        MonteCarlo(samples=16)
    with pytest.raises(UserError, match=r"samples is 1 in single copies: give a multiple of 1 of at least 2, "):
        MonteCarlo(samples=1, draws="independent")
    with pytest.raises(UserError, match=r"draws is 'sobol': give one of independent, stratified, "):
        MonteCarlo(draws="sobol")
