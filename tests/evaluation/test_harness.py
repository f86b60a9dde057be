"""The network as a model of lm-evaluation-harness, against the harness's own model and against plain calls."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'anyorder[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

import anyorder
from anyorder.data import train_tokenizer
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.errors import UserError
from anyorder.evaluation.harness import AnyOrderLM, Estimate, number_of
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.likelihood.diffusion import MonteCarlo, answer_log_prob
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.orders.by_name import order_named
from anyorder.orders.plan import GroupPlan

TEXT = "Once upon a time there was a little girl named Lily, who loved to play outside in the sun."
LONG = TEXT * 7
PAIRS = [("Once upon", " a time"), ("Lily, who", " loved to play outside"), ("", "the little"), ("the ", "sun.")]
TOO_LONG = (LONG, " a little girl")
MASK = 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 320)


@pytest.fixture
def model(tiny_config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> Llama:
    modes = (LEFT_TO_RIGHT, ANY_ORDER, diffusion(MASK))
    return Llama(tiny_config.replace(vocab_size=len(tokenizer), modes=modes, eos_token_ids=(tokenizer.eos_token_id,)))


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def scores(lm: AnyOrderLM, *pairs: tuple[list[int], list[int]]) -> list[tuple[Estimate, bool]]:
    return lm._loglikelihood_tokens([(("", ""), *pair) for pair in pairs], disable_tqdm=True)


# ---- left to right: the harness's own model --------------------------------------------------------


@pytest.fixture
def theirs(model: Llama, tokenizer: PreTrainedTokenizerFast) -> HFLM:
    return HFLM(pretrained=AnyOrderForCausalLM.of(model), tokenizer=tokenizer, backend="causal", batch_size=2)


def test_left_to_right_scores_as_the_harness(model: Llama, tokenizer: PreTrainedTokenizerFast, theirs: HFLM) -> None:
    ours = AnyOrderLM(model, tokenizer, order="left-to-right", batch_size=3)
    given = requests("loglikelihood", *PAIRS, TOO_LONG)
    expected = theirs.loglikelihood(given, disable_tqdm=True)
    found = ours.loglikelihood(given, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len(tokenizer(LONG)["input_ids"]) > 2 * model.config.context_length
    texts = requests("loglikelihood_rolling", (TEXT,), (LONG,))
    totals = ours.loglikelihood_rolling(texts, disable_tqdm=True)
    assert totals == pytest.approx(theirs.loglikelihood_rolling(texts, disable_tqdm=True), rel=1e-5)


def test_left_to_right_writes_as_the_harness(model: Llama, tokenizer: PreTrainedTokenizerFast, theirs: HFLM) -> None:
    ours = AnyOrderLM(model, tokenizer, order="left-to-right", batch_size=2)
    settings = ({"until": ["e"], "max_gen_toks": 6, "do_sample": False}, {"max_gen_toks": 4, "num_beams": 2})
    prompts = [(text, each) for each in settings for text in ("Once upon", "Lily", "there was a", LONG)]
    expected = theirs.generate_until(requests("generate_until", *prompts), disable_tqdm=True)
    found = ours.generate_until(requests("generate_until", *prompts), disable_tqdm=True)
    # But for bytes at the end that are no whole character.
    assert found == [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in expected]


# ---- other orders: plain calls ---------------------------------------------------------------------


@pytest.mark.parametrize("order", ["any-order", "right-to-left", "groups:2", "random"])
def test_any_order_is_exact(model: Llama, tokenizer: PreTrainedTokenizerFast, order: str) -> None:
    lm = AnyOrderLM(model, tokenizer, order=order, batch_size=2, seed=5)
    context, answer = tokenizer("Once upon")["input_ids"], tokenizer(" a little girl")["input_ids"]
    written = anyorder.generate(model, None, [*context, *[-1] * 4], order=order).token_ids
    pairs = [(context, answer), (context[:1], answer), (context, written)]
    found = scores(lm, *pairs)
    for (before, after), (score, greedy) in zip(pairs, found, strict=True):
        given = [True] * len(before) + [False] * len(after)
        plan = GroupPlan.from_masks(
            [given], [[not one for one in given]], order_named(order), 5, samples=[number_of(before, after)]
        )
        assert score == pytest.approx(float(anyorder.log_prob(model, [[*before, *after]], plan).total), rel=1e-5)
        assert score.standard_error == 0
        if order != "random":  # which draws an order for each text
            assert greedy == (after == written)
    assert not lm.is_bound


def test_diffusion_is_a_bound_with_its_error(model: Llama, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = AnyOrderLM(model, tokenizer, order="diffusion", mask_samples=32, seed=5, batch_size=2)
    context, answer = tokenizer("Once upon")["input_ids"], tokenizer(" a little girl")["input_ids"]
    written = anyorder.generate(model, None, context, order="diffusion", max_new_tokens=4).token_ids
    other = [*written[:3], (written[3] + 1) % 100 + 10]
    pairs = [(context, answer), (context, written), (context, other)]
    found = scores(lm, *pairs)
    for (before, after), (score, _) in zip(pairs, found, strict=True):
        method = MonteCarlo(samples=32, seed=5)
        [bound] = answer_log_prob(
            model, [before], [after], mode=lm.mode, method=method, sample_ids=[number_of(before, after)]
        )
        assert score == pytest.approx(bound.log_prob, rel=1e-5)
        assert score.standard_error == pytest.approx(bound.standard_error, rel=1e-4)
        assert score.standard_error > 0
    assert [greedy for _, greedy in found] == [False, True, False]
    assert lm.settings()["log_probs"] == "bound"

    [total] = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (LONG,)), disable_tqdm=True)
    assert isinstance(total, Estimate)
    assert total.standard_error > 0

    sampler = DiffusionSampler.preset("llada", cfg_scale=1.5)
    [(guided, _)] = scores(AnyOrderLM(model, tokenizer, order=sampler, mask_samples=32, seed=5), pairs[0])
    [expected] = answer_log_prob(
        model, [context], [answer], mode=lm.mode, method=method, guidance=1.5, sample_ids=[number_of(context, answer)]
    )
    assert guided == pytest.approx(expected.log_prob, rel=1e-5)
    assert guided != pytest.approx(found[0][0], rel=1e-3)


def test_answers_are_written_in_the_mode(model: Llama, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [(text, {"max_gen_toks": 4, "until": "e"}) for text in ("Once upon", "Lily", "there was a [...]")]
    for order in ("groups:2", DiffusionSampler.preset("llada", steps=2)):
        lm = AnyOrderLM(model, tokenizer, order=order, batch_size=2)
        found = lm.generate_until(requests("generate_until", *prompts), disable_tqdm=True)
        for (text, _), answer in zip(prompts, found, strict=True):
            ids = tokenizer(text)["input_ids"]  # in which there is no gap
            assert answer == anyorder.generate(model, tokenizer, ids, order=order, max_new_tokens=4, stop="e").text


@pytest.mark.parametrize("order", ["left-to-right", "random", "diffusion"])
def test_a_response_depends_on_its_request_alone(model: Llama, tokenizer: PreTrainedTokenizerFast, order: str) -> None:
    options: dict[str, Any] = {"order": order, "mask_samples": 32}
    together, alone = (AnyOrderLM(model, tokenizer, batch_size=size, **options) for size in (4, 1))
    pairs = requests("loglikelihood", *PAIRS)
    all_scores = together.loglikelihood(pairs, disable_tqdm=True)
    some = alone.loglikelihood([pairs[3], pairs[1]], disable_tqdm=True)
    assert [score for score, _ in some] == pytest.approx([all_scores[3][0], all_scores[1][0]], rel=1e-5)
    drawn = {"max_gen_toks": 4, "do_sample": True, "temperature": 2.0, "top_k": 50}
    prompts = requests("generate_until", *[(text, drawn) for text in ("Once upon", "Lily", "Lily", "the")])
    texts = together.generate_until(prompts, disable_tqdm=True)
    assert alone.generate_until([prompts[3], prompts[1]], disable_tqdm=True) == [texts[3], texts[1]]
    assert texts[1] != texts[2]  # a request that is repeated is drawn anew
    other = AnyOrderLM(model, tokenizer, seed=7, **options)
    assert other.generate_until(prompts, disable_tqdm=True) != texts


def test_chat_template(model: Llama, tokenizer: PreTrainedTokenizerFast, theirs: HFLM) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    tokenizer.chat_template = template
    lm = AnyOrderLM(model, tokenizer)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    theirs.tokenizer = tokenizer
    for asks in (True, False):
        assert lm.apply_chat_template(messages, asks) == theirs.apply_chat_template(messages, asks)
    assert lm.apply_chat_template(messages, False) == "[user]Hi;[assistant]Once upon"


def test_estimates_are_numbers_that_are_kept_with_their_error() -> None:
    estimate = Estimate(-3.5)
    estimate.standard_error = 0.25
    copy = pickle.loads(pickle.dumps(estimate))  # noqa: S301 (as the harness's cache does)
    assert (copy, copy.standard_error) == (-3.5, 0.25)
    assert Estimate(-1.0).standard_error == 0
    assert math.isclose(estimate + 1, -2.5)


def test_mistakes(model: Llama, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"^the model has no tokenizer, which tasks of text need: give it with"):
        AnyOrderLM(model, None)
    with pytest.raises(UserError, match=r"^mask_samples is 40: give a multiple of 16 of at least 32\.$"):
        AnyOrderLM(model, tokenizer, mask_samples=40)
    lm = AnyOrderLM(model, tokenizer)
    with pytest.raises(UserError, match=r"^the answer '' has no tokens of its own behind 'Once': change the task\.$"):
        lm.loglikelihood(requests("loglikelihood", ("Once", "")), disable_tqdm=True)
    with pytest.raises(UserError, match=r"^an answer has \d+ tokens, and the network was trained on 64: leave out"):
        lm.loglikelihood(requests("loglikelihood", ("Once", LONG)), disable_tqdm=True)
    with pytest.raises(UserError, match=r"^a task has typical_p 0\.5 among its generation_kwargs, which is not supp"):
        lm.generate_until(requests("generate_until", ("Once", {"typical_p": 0.5})), disable_tqdm=True)
    with pytest.raises(UserError, match=r"^answers have up to 256 tokens, and the network was trained on 64: give f"):
        lm.generate_until(requests("generate_until", ("Once", {})), disable_tqdm=True)
