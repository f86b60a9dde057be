"""Many clients at a time, of all modes, of which some hang up."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.model.llama import Llama
from anyorder.serving.engine import Limits
from tests.serving.conftest import serving
from tests.serving.test_openai_client import wait_until

pytestmark = pytest.mark.slow

ORDERS = ("left-to-right", "random", "diffusion", "blocks:4")


def body_of(number: int) -> dict[str, Any]:
    return {
        "prompt": ("hello there", "ab", "the cat sat on the mat ")[number % 3], "order": ORDERS[number % 4],
        "seed": number % 8, "temperature": 1.0, "max_tokens": 6 + number % 5, "stream": number % 2 == 0,
    }  # fmt: skip


def test_nothing_is_lost_and_nothing_mixed_up(network: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    with serving(*network, limits=Limits(queued=400)) as (address, server):
        limits = httpx.Limits(max_connections=200)
        client = httpx.Client(base_url=address, timeout=600, limits=limits)

        def ask(number: int) -> str | None:
            body = body_of(number)
            if number % 10 == 0:  # hangs up after the first chunk
                with client.stream("POST", "/v1/completions", json=body | {"max_tokens": 200}) as stream:
                    next(stream.iter_lines())
                return None
            response = client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            if not body["stream"]:
                return str(response.json()["choices"][0]["text"])
            events = response.text.strip().split("\n\n")
            chunks = [event for event in events if event.startswith('data: {"')]
            return "".join(httpx.Response(200, text=chunk[6:]).json()["choices"][0]["text"] for chunk in chunks)

        with ThreadPoolExecutor(200) as pool:
            texts = list(pool.map(ask, range(200)))
        wait_until(lambda: server.engine.running == server.engine.waiting == 0)
        counts = server.engine.counts
        assert counts.finished + counts.cancelled == 200
        assert counts.failed == 0
    alone: dict[tuple[Any, ...], Any] = {}
    for number, text in enumerate(texts):
        body = body_of(number)
        key = (body["prompt"], body["order"], body["seed"], body["max_tokens"])
        if text is not None and key not in alone:
            alone[key] = anyorder.generate(
                *network, body["prompt"], order=body["order"], seed=body["seed"], temperature=1.0,
                max_new_tokens=body["max_tokens"],
            ).text  # fmt: skip
        assert text is None or text == alone[key], body


def test_memory_is_flat(network: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

    draw = random.Random(0)
    with serving(*network, limits=Limits(queued=400)) as (address, _):
        client = httpx.Client(base_url=address, timeout=600)

        def ask(number: int) -> None:
            sampler = {"sampler": {"steps": draw.randrange(1, 5), "cfg_scale": draw.random()}}
            body = body_of(number) | {"max_tokens": 5} | (sampler if number % 20 == 2 else {})
            assert client.post("/v1/completions", json=body).status_code == 200

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, range(500)))
            first = resident()
            list(pool.map(ask, range(1500)))
        assert resident() - first < 16_000  # KiB
