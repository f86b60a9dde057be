"""A served network of four modes, on a free port of this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from transformers import PreTrainedTokenizerBase

from anyorder.model.llama import Llama
from anyorder.serving.app import Server, build_app
from anyorder.serving.engine import Engine, Limits
from anyorder.serving.run import listen
from tests.serving.networks import four_modes


@pytest.fixture(scope="session")
def network() -> tuple[Llama, PreTrainedTokenizerBase]:
    return four_modes()


@contextmanager
def serving(model: Llama, tokenizer: Any, limits: Limits | None = None, **options: Any) -> Iterator[tuple[str, Server]]:
    """The address of a server, and the server, as long as the block runs."""
    server = Server(model=model, tokenizer=tokenizer, name="tiny", engine=Engine(limits or Limits()), **options)
    socket = listen("127.0.0.1", 0)
    runner = uvicorn.Server(uvicorn.Config(build_app(server), log_level="error"))
    thread = threading.Thread(target=lambda: runner.run(sockets=[socket]), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}", server
    finally:
        server.engine.close(drain=False)
        runner.should_exit = True
        thread.join(20)
        socket.close()


@pytest.fixture(scope="session")
def served(network: tuple[Llama, PreTrainedTokenizerBase]) -> Iterator[tuple[str, Server]]:
    with serving(*network) as place:
        yield place


@pytest.fixture
def client(served: tuple[str, Server]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def post(served: tuple[str, Server]) -> Iterator[Callable[..., httpx.Response]]:
    """Post a body, as JSON or as it is."""
    with httpx.Client(base_url=served[0], timeout=60) as client:
        yield (
            lambda path, body: (
                client.post(path, content=body) if isinstance(body, bytes) else client.post(path, json=body)
            )
        )
