"""The routes of our own and of llama.cpp, and what every route refuses."""

from __future__ import annotations

import copy
import json
import runpy
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.likelihood.diffusion import MonteCarlo, diffusion_log_prob
from anyorder.model.llama import Llama
from anyorder.model.modes import Mode
from anyorder.modes import register
from anyorder.orders.kinds import LeftToRight
from anyorder.orders.plan import GroupPlan
from anyorder.serving.app import LARGEST_BODY, Server
from tests.modes.table import own_modes
from tests.serving.conftest import serving
from tests.serving.test_openai_client import wait_until

Network = tuple[Llama, PreTrainedTokenizerBase]
Post = Callable[..., httpx.Response]

WAYS: list[dict[str, Any]] = [
    {"order": "random"},
    {"order": "diffusion"},
    {"order": "diffusion", "sampler": {"steps": 2, "confidence": "margin"}},
    {"sampler": {"preset": "fast-dllm", "block_length": 4}},
    {"sampler": "dream-entropy"},
    {"order": "blocks"},
    {"sampler": {"cfg_scale": 1.0}},
    {"order": "blocks:4", "sampler": {"threshold": 0.5, "suppress_end": "choice"}},
]


def answer(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def chunks(response: httpx.Response) -> Iterator[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    yield from (json.loads(event.removeprefix("data: ")) for event in events)


def order_of(way: dict[str, Any]) -> Any:
    """What Python's functions take for the fields of a request."""
    sampler = way.get("sampler")
    if sampler is None:
        return way["order"]
    if isinstance(sampler, str):
        return anyorder.DiffusionSampler.preset(sampler)
    if "preset" in sampler:
        return anyorder.DiffusionSampler.preset("fast-dllm", block_length=sampler["block_length"])
    if "threshold" in sampler:
        published = anyorder.DiffusionSampler.preset("llada", threshold=0.5, block_length=4)
        return published.replace(mode="blocks", suppress_end="choice")
    return anyorder.DiffusionSampler(**sampler)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gaps_are_filled_in_every_way(post: Post, network: Network, way: dict[str, Any]) -> None:
    prompt = "the [...] sat on [...] mats"
    out: Any = anyorder.generate(*network, prompt, order=order_of(way), gap_tokens=4)
    body = {"prompt": prompt, "gaps": True, "gap_tokens": 4, "seed": 0, **way}
    [choice] = answer(post("/v1/completions", body))["choices"]
    assert choice["text"] == out.full_text
    assert [gap["text"] for gap in choice["gaps"]] == out.text.split("[...]")
    assert choice["token_ids"] == out.token_ids
    for diffusing in (False, True):
        texts = [
            chunk["choices"][0]["text"]
            for chunk in chunks(post("/v1/completions", body | {"stream": True, "diffusing": diffusing}))
        ]
        assert (texts[-1] if diffusing else "".join(texts)) == out.full_text


def test_dots_are_text_unless_gaps_are_asked_for(post: Post, network: Network) -> None:
    ids = network[1]("a [...] b")["input_ids"]
    out = anyorder.generate(*network, ids, max_new_tokens=4)
    [choice] = answer(post("/v1/completions", {"prompt": "a [...] b", "max_tokens": 4}))["choices"]
    assert choice["text"] == out.text
    refused = post("/v1/completions", {"prompt": [5, -1, 6], "max_tokens": 4})
    assert "prompt 0 has a gap (-1): give gaps: true, too" in refused.json()["error"]["message"]


def test_a_suffix_is_what_comes_behind(post: Post, network: Network) -> None:
    _, tokenizer = network
    canvas = [*tokenizer("ab")["input_ids"], -1, -1, -1, *tokenizer("cd")["input_ids"]]
    out = anyorder.generate(*network, canvas, order="random", seed=1)
    body = {"prompt": "ab", "suffix": "cd", "max_tokens": 3, "order": "random", "seed": 1}
    assert answer(post("/v1/completions", body))["choices"][0]["text"] == out.text
    extra = [{"filename": "f.py", "text": "a"}]
    for_editors = {
        "input_prefix": "a",
        "prompt": "b",
        "input_suffix": "cd",
        "n_predict": 3,
        "order": "random",
        "seed": 1,
    }
    infilled = answer(post("/infill", for_editors | {"cache_prompt": True, "samplers": ["top_k"]}))
    assert (infilled["content"], infilled["tokens_predicted"], infilled["stop_type"]) == (out.text, 3, "limit")
    assert answer(post("/infill", for_editors | {"input_extra": extra}))["tokens_evaluated"] == 4 + len("f.py\na\n")
    streamed = list(chunks(post("/infill", for_editors | {"stream": True})))
    assert "".join(chunk["content"] for chunk in streamed) == out.text
    assert [chunk["stop"] for chunk in streamed] == [False, True]


@pytest.mark.parametrize("order", ["left-to-right", "random", "diffusion"])
def test_phrasings_are_fused(post: Post, network: Network, order: str) -> None:
    phrasings = ["what is it", "which one is it?"]
    options: dict[str, Any] = {"prefix": "q: ", "suffix": " a:", "weights": [1.0, 2.0], "positions": "right"}
    out = anyorder.fuse(*network, phrasings, max_new_tokens=6, order=order, **options)
    body = {"phrasings": phrasings, "max_tokens": 6, "order": order, "seed": 0, **options}
    assert answer(post("/v1/fuse", body))["choices"][0]["text"] == out.text
    assert (
        "".join(chunk["choices"][0]["text"] for chunk in chunks(post("/v1/fuse", body | {"stream": True}))) == out.text
    )


def test_methods_of_fusion_and_phrasings_of_a_chat(post: Post, network: Network) -> None:
    model, tokenizer = network
    phrasings = ["what is it", "which one is it?"]
    out = anyorder.fuse(model, tokenizer, phrasings, suffix=" a:", max_new_tokens=6, method="logit-mean")
    body = {"phrasings": phrasings, "suffix": " a:", "max_tokens": 6, "method": "logit-mean"}
    assert answer(post("/v1/fuse", body))["choices"][0]["text"] == out.text
    assert "method is 'vote'" in post("/v1/fuse", body | {"method": "vote"}).json()["error"]["message"]
    chat = {"messages": [{"role": "user", "content": phrasings[0]}], "phrasings": phrasings[1:], "max_tokens": 6}
    fused = anyorder.fuse(
        model, tokenizer, phrasings, prefix="user:\n", suffix="\n\nassistant:\n", max_new_tokens=6
    )  # fmt: skip
    assert answer(post("/v1/chat/completions", chat))["choices"][0]["message"]["content"] == fused.text
    same = chat | {"phrasings": [phrasings[0]] * 3}
    alone = {name: value for name, value in chat.items() if name != "phrasings"}
    texts = [answer(post("/v1/chat/completions", one))["choices"][0]["message"]["content"] for one in (same, alone)]
    assert texts[0] == texts[1]


def test_scores_are_those_of_python(post: Post, network: Network) -> None:
    model, tokenizer = network
    ids = tokenizer("hello there")["input_ids"]
    every = [[True] * len(ids)]
    orders = {"left-to-right": None, "any-order": GroupPlan.from_masks([[False] * len(ids)], every, LeftToRight())}
    for order in orders:
        body = {"input": "hello there", "order": order, "logprobs": True}
        [score] = answer(post("/v1/score", body))["data"]
        assert score["exact"]
        assert score["standard_error"] == 0
        own = [value for value in score["token_logprobs"] if value is not None]
        assert score["log_prob"] == pytest.approx(sum(own), abs=1e-3)
        assert score["tokens"] == len(own) == len(ids) - (order == "left-to-right")
        if (plan := orders[order]) is not None:
            assert score["log_prob"] == pytest.approx(float(anyorder.log_prob(model, ids, plan).total[0]), abs=1e-3)
    [bound] = diffusion_log_prob(
        model, [ids], [range(6, len(ids))], mode=model.config.mode("diffusion"), method=MonteCarlo(samples=32)
    )
    body = {"input": [ids[6:]], "given": "hello ", "order": "diffusion", "samples": 32}
    assert "put its token ids before" in post("/v1/score", body).json()["error"]["message"]
    [score] = answer(post("/v1/score", body | {"input": "there"}))["data"]
    assert (score["log_prob"], score["standard_error"]) == pytest.approx((bound.log_prob, bound.standard_error))
    assert (score["exact"], score["tokens"]) == (False, 5)
    for wrong, message in (
        ({"input": "h"}, "of which 1 are given: give more text"),
        ({"input": "hello", "order": "confidence"}, "which depends on what is written"),
        ({"input": "h" * 300}, "44 more than the 256"),
    ):
        assert message in post("/v1/score", wrong).json()["error"]["message"]


def test_tokens_and_text(post: Post, network: Network) -> None:
    ids = network[1]("hello")["input_ids"]
    assert answer(post("/tokenize", {"content": "hello"})) == {"tokens": ids}
    assert answer(post("/tokenize", {"content": "h", "with_pieces": True})) == {
        "tokens": [{"id": ids[0], "piece": "h"}]
    }
    assert answer(post("/detokenize", {"tokens": ids})) == {"content": "hello"}
    assert "tokens has 1000: give ids" in post("/detokenize", {"tokens": [1000]}).json()["error"]["message"]


def test_health_and_metrics(served: tuple[str, Server]) -> None:
    address, server = served
    answer(
        httpx.post(
            f"{address}/v1/completions", json={"prompt": "ab", "max_tokens": 2}, headers={"x-request-id": "mine"}
        )
    )
    assert answer(httpx.get(f"{address}/health")) == {"status": "ok"}
    text = httpx.get(f"{address}/metrics").text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert values["anyorder_texts_running"] == 0
    assert values["anyorder_passes_total"] == server.engine.counts.passes
    assert values['anyorder_http_requests_total{route="/v1/completions",status="200"}'] >= 1


def test_a_request_keeps_its_number(served: tuple[str, Server]) -> None:
    for number, kept in (("mine", "mine"), ("", None)):
        headers = {"x-request-id": number} if number else {}
        given = httpx.post(f"{served[0]}/tokenize", json={"content": "a"}, headers=headers).headers["x-request-id"]
        assert given == kept or (kept is None and len(given) == 32)


def test_what_failed_says_so(network: Network) -> None:
    with serving(*network) as (address, server):
        server.engine._commands.put(_end_thread)
        server.engine.call(int)
        wait_until(lambda: server.engine.error is not None)
        response = httpx.get(f"{address}/health")
        assert (response.status_code, response.json()["status"]) == (503, "error")
        assert httpx.post(f"{address}/v1/completions", json={"prompt": "a"}).status_code == 503


def _end_thread(engine: object) -> None:
    raise SystemExit


# ---- events ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [{"order": "left-to-right"}, *WAYS], ids=str)
def test_events_are_those_of_the_trace(post: Post, network: Network, way: dict[str, Any]) -> None:
    out = anyorder.generate(*network, "the cat", order=order_of(way), max_new_tokens=8)
    body = {"prompt": "the cat", "max_tokens": 8, "stream": True, "diffusing": "events", "seed": 0, **way}
    found = list(chunks(post("/v1/completions", body)))
    events = [event for chunk in found for event in chunk.get("canvas", {}).get("events", [])]
    assert [(event["step"], event["position"], event["token"]) for event in events] == [
        (event.step, event.position, event.token_id) for event in out.trace.events
    ]
    assert {event["action"] for event in events} <= {"write", "edit"}
    assert found[-1]["choices"][0]["text"] == out.text
    assert found[-1]["choices"][0]["finish_reason"] == {"length": "length"}.get(out.stopped[0], "stop")


def test_edits_say_what_they_replace(post: Post, network: Network) -> None:
    way = {"sampler": {"edit": 0.05, "steps": 4}}
    body = {"prompt": "the cat", "max_tokens": 12, "stream": True, "diffusing": "events", **way}
    known: dict[int, int] = {}
    edits = 0
    for chunk in chunks(post("/v1/completions", body)):
        for event in chunk.get("canvas", {}).get("events", []):
            assert event.get("from") == known.get(event["position"])
            edits += event["action"] == "edit"
            known[event["position"]] = event["token"]
    assert edits
    settled = [chunk["choices"][0]["text"] for chunk in chunks(post("/v1/completions", body | {"diffusing": False}))]
    sampler = anyorder.DiffusionSampler(edit=0.05, steps=4)
    assert "".join(settled) == anyorder.generate(*network, "the cat", order=sampler, max_new_tokens=12).text


# ---- bad input -------------------------------------------------------------------------------------------

A: Any = {"prompt": "a"}
CHAT: Any = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", b"{", 400, "the body is not JSON (Expecting property name"),
        ("/v1/completions", b"\xff\xfe", 400, "the body is not JSON"),
        ("/v1/completions", b"[" * 100_000, 400, "the body is not JSON (nested too deeply)"),
        ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400, "NaN is no number of JSON"),
        ("/v1/completions", b"[1]", 400, "the body is [1]: give a JSON object"),
        ("/v1/completions", b'{"prompt": "\\ud800"}', 400, "half a character"),
        ("/v1/completions", {}, 400, "the field 'prompt' is missing"),
        ("/v1/completions", {"prompt": 5}, 400, "prompt is 5"),
        ("/v1/completions", {"prompt": [[1], "a", [2.5]]}, 400, "prompt is [[1], 'a', [2.5]]"),
        ("/v1/completions", {"prompt": []}, 400, "give a string, token ids"),
        ("/v1/completions", {"prompt": [1000]}, 400, "the token id 1000"),
        ("/v1/completions", {"prompt": "a" * 300}, 400, "prompt 0 has 300 tokens, 45 more than the 255"),
        ("/v1/completions", A | {"max_tokens": "5"}, 400, "max_tokens is '5': give a whole number"),
        ("/v1/completions", A | {"max_tokens": 0}, 400, "max_tokens is 0: give a whole number above 0"),
        ("/v1/completions", A | {"n": 0}, 400, "n is 0"),
        ("/v1/completions", A | {"n": 2}, 400, "n is 2: at temperature 0 all texts are the same"),
        ("/v1/completions", A | {"n": 99, "temperature": 1}, 400, "has 99 texts to write, and at most 16"),
        ("/v1/completions", A | {"best_of": 3}, 400, "best_of is 3"),
        ("/v1/completions", A | {"logprobs": 99}, 400, "logprobs is 99: give 0 to 20"),
        ("/v1/completions", A | {"logit_bias": {"a": 1}}, 400, "logit_bias is 'a': give token ids as keys"),
        ("/v1/completions", A | {"logit_bias": {"500": 1}}, 400, "logit_bias is 500: give ids below"),
        ("/v1/completions", A | {"logit_bias": {"5": 101}}, 400, "give numbers from -100 to 100"),
        ("/v1/completions", A | {"presence_penalty": 1, "order": "random"}, 400, "for texts from left to right"),
        ("/v1/completions", A | {"repetition_penalty": 2, "order": "diffusion"}, 400, "which diffusion does not know"),
        ("/v1/completions", A | {"top_p": 0.5}, 400, "top_p is 0.5 at temperature 0"),
        ("/v1/completions", A | {"seed": "x"}, 400, "seed is 'x'"),
        ("/v1/completions", A | {"stop": ["", "a"]}, 400, "give strings of at least one character"),
        (
            "/v1/completions",
            A | {"stop": "a", "suffix": "b", "order": "random"},
            400,
            "a gap is always filled to its end",
        ),
        ("/v1/completions", A | {"order": "sideways"}, 400, "order is 'sideways': give one of left-to-right"),
        ("/v1/completions", A | {"order": "random", "sampler": "llada"}, 400, "a sampler is for diffusion"),
        ("/v1/completions", A | {"sampler": "llama"}, 400, "preset is 'llama': choose one of llada"),
        ("/v1/completions", A | {"sampler": {"step": 3}}, 400, "the sampler has no 'step' here: did you mean 'steps'?"),
        ("/v1/completions", A | {"sampler": {"steps": -3}}, 400, "steps of the sampler is -3"),
        ("/v1/completions", A | {"sampler": {"commit": "all"}}, 400, "commit of the sampler is no JSON"),
        ("/v1/completions", A | {"diffusing": "all", "stream": True}, 400, "diffusing is 'all'"),
        ("/v1/completions", A | {"diffusing": True}, 400, "diffusing is True: give stream, too"),
        ("/v1/completions", A | {"stream_options": {}}, 400, "stream_options is {}: give stream, too"),
        ("/v1/completions", A | {"stream": True, "stream_options": {"usages": 1}}, 400, "give one of include_usage"),
        ("/v1/completions", A | {"echo": True, "stream": True}, 400, "an echo is not streamed"),
        ("/v1/completions", A | {"gap_tokens": 4}, 400, "gap_tokens is 4: give gaps, too"),
        ("/v1/completions", A | {"prompts": "a"}, 400, "the field 'prompts' is unknown: did you mean 'prompt'?"),
        ("/v1/completions", A | {"block_size": 4}, 400, "the field 'block_size' is unknown"),
        ("/v1/chat/completions", {"messages": []}, 400, "give at least one message"),
        ("/v1/chat/completions", {"messages": "a"}, 400, "messages is 'a'"),
        ("/v1/chat/completions", {"messages": [{"content": "a"}]}, 400, "the role of message 0 is None"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "the content of message 0 is None: give text"),
        ("/v1/chat/completions", CHAT | {"tools": [{}]}, 400, "tools is [{}]: this server has none"),
        ("/v1/chat/completions", CHAT | {"response_format": {"type": "json_object"}}, 400, "only text is written"),
        (
            "/v1/chat/completions",
            CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
            400,
            "so leave it out.",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"model": "other"},
            404,
            "the model 'other' is unknown: this server has 'tiny'.",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 300}]}, 400, "more than the 255"),
        ("/apply-template", {"messages": []}, 400, "give at least one message"),
        (
            "/v1/chat/completions",
            CHAT | {"max_tokens": 1, "max_completion_tokens": 2},
            400,
            "beside max_completion_tokens",
        ),
        ("/v1/chat/completions", CHAT | {"top_logprobs": 2}, 400, "top_logprobs is 2: give logprobs, too"),
        ("/v1/fuse", {"phrasings": []}, 400, "phrasings"),
        ("/v1/fuse", {"phrasings": ["a"], "method": "mean"}, 400, "method is 'mean'"),
        ("/infill", {"n_predict": 0}, 400, "n_predict is 0"),
        ("/nowhere", {}, 404, "POST /nowhere: Not Found"),
        ("/health", {}, 405, "POST /health: Method Not Allowed"),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:60],
)
def test_mistakes_are_told_in_a_sentence(
    post: Post, path: str, body: Any, status: int, message: str, served: tuple[str, Server]
) -> None:
    response = post(path, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error["message"].endswith((".", "?"))
    assert error.keys() == {"message", "type", "param", "code"}
    assert served[1].engine.error is None


def test_fields_that_change_nothing_are_taken(post: Post) -> None:
    body = {
        "prompt": "a",
        "max_tokens": 2,
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "top_p": 1,
        "seed": None,
    }
    assert answer(post("/v1/completions", body))["choices"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}},
            "nothing is fetched, so give a data: URL",
        ),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, "this network reads text alone"),
        ({"type": "audio"}, "give parts of the types text and image_url"),
    ],
)
def test_images_are_refused(post: Post, part: Any, message: str) -> None:
    response = post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
    assert (response.status_code, message in response.json()["error"]["message"]) == (400, True)


def test_a_template_that_raises(network: Network) -> None:
    """Or runs without end, is a sentence, and the server lives on."""
    model, tokenizer = network
    broken = copy.deepcopy(tokenizer)
    for template, message in (
        ("{{ raise_exception('user and assistant take turns') }}", "user and assistant take turns"),
        ("{{ messages.nothing.at.all }}", "the chat template does not write"),
        ("{% for a in range(10**6) %}{% for b in range(10**6) %}{% endfor %}{% endfor %}", "the chat template"),
    ):
        broken.chat_template = template
        with serving(model, broken) as (address, _):
            for path in ("/v1/chat/completions", "/apply-template"):
                response = httpx.post(f"{address}{path}", json=CHAT, timeout=60)
                assert response.status_code == 400, response.text
                assert message in response.json()["error"]["message"]
            assert answer(httpx.post(f"{address}/v1/completions", json=A | {"max_tokens": 2}))["choices"]


def test_a_template_is_applied(post: Post) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert answer(post("/apply-template", {"messages": messages})) == {"prompt": "user:\na\n\nassistant:\n"}


def test_a_slow_reader_holds_up_nobody_and_gets_everything(post: Post, served: tuple[str, Server]) -> None:
    address, server = served
    host, port = address.removeprefix("http://").split(":")
    long = {"prompt": "ab", "max_tokens": 240, "logit_bias": {"2": -100}, "logprobs": 20, "n": 4, "temperature": 1.0}
    body = json.dumps(long | {"seed": 1, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((host, int(port)))
        connection.sendall(head.encode() + body)
        wait_until(lambda: server.engine.running == 4)
        assert answer(post("/v1/completions", A | {"max_tokens": 4}))["choices"]
        wait_until(lambda: server.engine.running == 0)
        received = b""
        while data := connection.recv(4096):
            received += data
    texts = [""] * 4
    for line in received.decode().splitlines():
        if line.startswith('data: {"'):
            [choice] = json.loads(line.removeprefix("data: "))["choices"]
            texts[choice["index"]] += choice["text"]
    whole = answer(post("/v1/completions", long | {"seed": 1}))
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert b"data: [DONE]" in received


def test_a_body_that_is_too_large_is_refused(served: tuple[str, Server]) -> None:
    """Before all of it has come."""
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1 << 20
            yield b" " * (1 << 20)

    try:
        response = httpx.post(f"{served[0]}/v1/completions", content=parts(), timeout=30)
        assert response.status_code == 413
        assert f"more than {LARGEST_BODY >> 20} MiB" in response.json()["error"]["message"]
    except httpx.WriteError:  # the connection was closed while it was sent
        pass
    assert sent < 100 << 20
    assert httpx.get(f"{served[0]}/health").status_code == 200


def test_networks_of_one_mode_say_which(network: Network) -> None:
    model, tokenizer = network
    only = Llama(model.config.replace(modes=(model.config.mode("left-to-right"),)))
    with serving(only, tokenizer) as (address, _):
        for body in ({"order": "diffusion"}, {"suffix": "b"}, {"sampler": "llada"}):
            response = httpx.post(f"{address}/v1/completions", json={"prompt": "a", **body})
            assert response.status_code == 400
            assert "'left-to-right'" in response.json()["error"]["message"]


@own_modes()
def test_a_registered_mode_is_served(project_root: Path, network: Network) -> None:
    """By its own decoder, beside the others."""
    example = runpy.run_path(str(project_root / "examples" / "own_mode.py"))
    register(example["BothEndsMode"]())
    model, tokenizer = network
    mode = Mode(name="both-ends", shifted=False, mask_token_id=3, block_length=4)
    taught = Llama(model.config.replace(modes=(*model.config.modes, mode))).eval()
    taught.load_state_dict(model.state_dict())
    body = {"order": "both-ends:2", "temperature": 1.0, "seed": 3, "n": 2, "max_tokens": 8}
    drawn: Any = {"order": "both-ends:2", "temperature": 1.0, "seed": 3, "num_samples": 2}
    with serving(taught, tokenizer) as (address, _):
        out: Any = anyorder.generate(taught, tokenizer, "the cat", max_new_tokens=8, **drawn)
        whole = answer(httpx.post(f"{address}/v1/completions", json=body | {"prompt": "the cat"}))
        assert [choice["text"] for choice in whole["choices"]] == out.text
        texts = ["", ""]
        for chunk in chunks(httpx.post(f"{address}/v1/completions", json=body | {"prompt": "the cat", "stream": True})):
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert texts == out.text
        gap: Any = anyorder.generate(taught, tokenizer, "a [...] b", gap_tokens=4, **drawn)
        gaps = {"prompt": "a [...] b", "gaps": True, "gap_tokens": 4}
        filled = answer(httpx.post(f"{address}/v1/completions", json=body | gaps))
        assert [choice["text"] for choice in filled["choices"]] == gap.full_text
        stop = out.text[0][2:4]
        stopped: Any = anyorder.generate(taught, tokenizer, "the cat", max_new_tokens=8, stop=stop, **drawn)
        ended = answer(httpx.post(f"{address}/v1/completions", json=body | {"prompt": "the cat", "stop": stop}))
        assert [choice["text"] for choice in ended["choices"]] == stopped.text
        [score] = answer(httpx.post(f"{address}/v1/score", json={"input": "the cat", "order": "both-ends"}))["data"]
        assert score["exact"]
        assert score["tokens"] == 7
        for field in ({"logit_bias": {"5": 1}}, {"logprobs": 2}):
            refused = httpx.post(f"{address}/v1/completions", json=body | {"prompt": "a"} | field)
            assert "in this mode" in refused.json()["error"]["message"]


def test_without_a_tokenizer_token_ids_do(network: Network) -> None:
    model, _ = network
    with serving(model, None) as (address, _):
        body = {"prompt": [5, 6, 7], "max_tokens": 4, "logprobs": 1}
        [choice] = answer(httpx.post(f"{address}/v1/completions", json=body))["choices"]
        assert choice["token_ids"] == anyorder.generate(model, None, [5, 6, 7], max_new_tokens=4).token_ids
        for path, other in (("/v1/completions", A), ("/v1/chat/completions", CHAT), ("/tokenize", {"content": "a"})):
            response = httpx.post(f"{address}{path}", json=other)
            assert (response.status_code, "okenizer" in response.json()["error"]["message"]) == (400, True)


def test_a_client_that_hangs_up_frees_its_row(served: tuple[str, Server]) -> None:
    """Whether it waits for the whole answer or for chunks, and without a word."""
    address, server = served
    host, port = address.removeprefix("http://").split(":")
    for stream in (False, True):
        before = server.engine.counts.cancelled
        body = json.dumps({"prompt": "a", "max_tokens": 255, "logit_bias": {"2": -100}, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body)
            wait_until(lambda: server.engine.running == 1)
        wait_until(lambda before=before: server.engine.counts.cancelled == before + 1)
        assert server.engine.running == 0
