"""The official client, unchanged, against what Python's functions give."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.model.llama import Llama
from anyorder.serving.app import Server
from anyorder.serving.engine import Limits
from tests.serving.conftest import serving

Network = tuple[Llama, PreTrainedTokenizerBase]

HELLO: Any = [{"role": "user", "content": "hello"}]


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 12, **options})


def complete(client: openai.OpenAI, prompt: Any = "ab", **options: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "max_tokens": 12, **options})


def test_models_are_listed_with_what_they_can(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model == client.models.retrieve("tiny")
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "anyorder")
    extra: Any = model.model_extra
    assert extra["modes"] == ["left-to-right", "any-order", "diffusion", "blocks"]
    assert (extra["default_mode"], extra["max_tokens"]) == ("left-to-right", 256)


def test_chat_is_what_generate_gives(client: openai.OpenAI, network: Network) -> None:
    out = anyorder.generate(*network, HELLO, max_new_tokens=12)
    answer = chat(client)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", out.text)
    assert choice.finish_reason == {"end": "stop", "length": "length"}[out.stopped[0]]
    usage = answer.usage
    prompt = len(out.sequences[0]) - len(out.token_ids)
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, len(out.token_ids))
    assert usage.total_tokens == prompt + len(out.token_ids)
    assert usage.model_extra == {"passes": out.passes, "tokens_per_pass": 1.0}
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    assert chat(client, messages=parts, max_tokens=openai.omit, max_completion_tokens=12).choices[0] == choice


def test_without_a_limit_a_chat_goes_on_to_the_end_of_the_context(client: openai.OpenAI, network: Network) -> None:
    answer = chat(client, max_tokens=openai.omit, logit_bias={"2": -100})
    assert answer.usage.total_tokens == 256
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("order", ["left-to-right", "random", "diffusion", "blocks:4"])
def test_streamed_chats_are_whole_ones_in_pieces(client: openai.OpenAI, network: Network, order: str) -> None:
    """Also with several texts, of which each is that of its number alone."""
    options = {"temperature": 1, "seed": 5, "extra_body": {"order": order}}
    out = anyorder.generate(
        *network, HELLO, max_new_tokens=12, temperature=1, seed=5, num_samples=2, order=order
    )  # fmt: skip
    texts: Any = ["", ""]
    reasons: dict[int, str] = {}
    usages = []
    for chunk in chat(client, n=2, stream=True, stream_options={"include_usage": True}, **options):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
        usages.append(chunk.usage)
    assert texts == out.text
    assert [choice.message.content for choice in chat(client, n=2, **options).choices] == out.text
    assert reasons == {row: "length" if why == "length" else "stop" for row, why in enumerate(out.stopped)}
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1] == chat(client, n=2, **options).usage


def test_seeds_decide_and_are_reported(client: openai.OpenAI) -> None:
    drawn = complete(client, temperature=1, max_tokens=20)
    seed: Any = drawn.model_extra["seed"]
    assert complete(client, temperature=1, max_tokens=20, seed=seed).choices == drawn.choices
    assert complete(client, temperature=1, max_tokens=20).model_extra["seed"] != seed


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client: openai.OpenAI, network: Network) -> None:
    whole: Any = anyorder.generate(*network, "ab", max_new_tokens=12).text
    stop = whole[4:6]
    expected = whole[: whole.index(stop)]
    [choice] = complete(client, stop=[stop, "never"]).choices
    assert (choice.text, choice.finish_reason) == (expected, "stop")
    pieces = [chunk.choices[0].text for chunk in complete(client, stop=stop, stream=True)]
    assert "".join(pieces) == expected


def test_log_probabilities(client: openai.OpenAI, network: Network) -> None:
    model, tokenizer = network
    answer = chat(client, logprobs=True, top_logprobs=2)
    [choice] = answer.choices
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries).replace("<mask>", "") == choice.message.content
    out = anyorder.generate(model, tokenizer, HELLO, max_new_tokens=12)
    for entry, event in zip(entries, out.trace.events, strict=False):
        assert entry.logprob == pytest.approx(event.log_prob, abs=1e-4)
        assert bytes(entry.bytes).decode() == entry.token == tokenizer.decode([event.token_id])
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (top.logprob for top in entry.top_logprobs), reverse=True
        )
        assert (entry.top_logprobs[0].token, len(entry.top_logprobs)) == (entry.token, 2)
    streamed = [
        entry
        for chunk in chat(client, logprobs=True, top_logprobs=2, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    canvas = complete(client, logprobs=0, extra_body={"order": "diffusion"}).choices[0].logprobs
    whole = anyorder.generate(model, tokenizer, "ab", order="diffusion", max_new_tokens=12)
    standing = {event.position: event.log_prob for event in whole.trace.events}
    expected = [standing[at] for at in sorted(standing)][: len(canvas.tokens)]
    assert canvas.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert canvas.top_logprobs[0] == {}


def test_an_echo_scores_the_prompt(client: openai.OpenAI, network: Network) -> None:
    """As lm-evaluation-harness asks for it: token ids, and one token more than is scored."""
    model, tokenizer = network
    rows = [tokenizer(text)["input_ids"] for text in ("hello there", "the cat")]
    answer = complete(client, rows, echo=True, logprobs=1, max_tokens=1)
    for row, choice in zip(rows, answer.choices, strict=True):
        logits_LV = model(torch.tensor([row])).logits[0].detach().log_softmax(-1)
        expected = logits_LV[range(len(row) - 1), row[1:]].tolist()
        logprobs = choice.logprobs
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
        assert choice.text.startswith(tokenizer.decode(row))
        assert logprobs.text_offset[-1] == len(tokenizer.decode(row))
        best = [next(iter(top.values())) for top in logprobs.top_logprobs[1:-1]]
        assert best == pytest.approx(logits_LV[:-1].max(-1).values.tolist(), abs=1e-4)
    alone = complete(client, rows, echo=True, logprobs=1, max_tokens=0)
    assert alone.choices[1].logprobs.token_logprobs == answer.choices[1].logprobs.token_logprobs[:-1]
    assert alone.usage.completion_tokens == 0
    assert complete(client, "the cat", echo=True).choices[0].text.startswith("the cat")


def test_several_prompts_are_numbered_as_in_a_list(client: openai.OpenAI, network: Network) -> None:
    prompts = ["ab", "the cat", "hello"]
    out = anyorder.generate(*network, prompts, max_new_tokens=12, temperature=1, seed=7, num_samples=2)
    answer = complete(client, prompts, n=2, temperature=1, seed=7)
    assert [choice.text for choice in answer.choices] == [text for texts in out.text or () for text in texts]
    assert [choice.index for choice in answer.choices] == list(range(6))


def test_errors_have_their_classes(client: openai.OpenAI, served: tuple[str, Server], network: Network) -> None:
    with pytest.raises(openai.NotFoundError, match="the model 'other' is unknown: this server has 'tiny'"):
        chat(client, model="other")
    with pytest.raises(openai.NotFoundError, match="the model 'other' is unknown"):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="temperature is -1: give 0") as caught:
        chat(client, temperature=-1)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="'temperatur' is unknown: did you mean 'temperature'") as caught:
        chat(client, extra_body={"temperatur": 1})
    assert caught.value.param == "temperatur"
    with serving(*network, api_key="secret") as (address, server):
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
        right = wrong.with_options(api_key="secret")
        with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
            chat(wrong)
        assert chat(right).choices
        server.engine.close()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            chat(right)
    with serving(*network, limits=Limits(seconds=0.01)) as (address, _):
        late = openai.OpenAI(base_url=f"{address}/v1", api_key="none")  # which would try again otherwise
        with pytest.raises(openai.InternalServerError, match=r"took longer than 0\.01 seconds") as error:
            chat(late, logit_bias={"2": -100}, max_tokens=200)
        assert error.value.status_code == 504


def test_after_a_full_queue_the_client_returns_by_itself(network: Network) -> None:
    with serving(*network, limits=Limits(running=1, queued=1)) as (address, server):
        impatient = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        running = chat(impatient, stream=True, max_tokens=openai.omit, logit_bias={"2": -100})
        next(iter(running))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(chat, impatient, max_tokens=2)
            wait_until(lambda: server.engine.waiting == 1)
            with pytest.raises(openai.RateLimitError, match="the queue is full: try again in 1 seconds") as caught:
                chat(impatient, max_tokens=2)
            assert caught.value.response.headers["retry-after"] == "1"
            patient = pool.submit(chat, impatient.with_options(max_retries=5), max_tokens=2)
            running.close()
            assert waiting.result(30).choices
            assert patient.result(30).choices


def test_a_stream_that_is_left_frees_its_row(client: openai.OpenAI, served: tuple[str, Server]) -> None:
    engine = served[1].engine
    before = engine.counts.cancelled
    stream = chat(client, stream=True, max_tokens=openai.omit, logit_bias={"2": -100})
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert engine.running == 1
    stream.close()
    wait_until(lambda: engine.counts.cancelled == before + 1)
    assert engine.running == 0


def wait_until(holds: Any) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to hold")
