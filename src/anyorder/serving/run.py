"""Runs the server, from the socket to its end."""

from __future__ import annotations

import functools
import importlib
import json
import socket as sockets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyorder.errors import UserError
from anyorder.model.compiled import with_packages
from anyorder.parallel import is_split
from anyorder.serving.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama


def listen(host: str, port: int) -> sockets.socket:
    """Open the socket to listen at; before a network is read, as that takes time.

    Raises:
        UserError: the port cannot be, or is taken, or there is no such address.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"port is {port}: give a number from 0 to {2**16 - 1}.")
    try:
        family = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0][0]
        socket = sockets.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"port is {port} at host {host!r}, which cannot be had ({reason}): give another.") from None
    # Connections inherit it. Otherwise the second packet of an answer waits 40 ms for the first to be confirmed, as
    # asyncio does this only for sockets that name their protocol.
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    return socket


LOADING = {"message": "the network is being read: try again in a moment.", "type": "server_error", "code": "loading"}


@contextmanager
def answered_meanwhile(socket: sockets.socket) -> Iterator[None]:
    """Within the block, answer each request with status 503, such as while a network is read.

    Args:
        socket: that listens; it still does so behind the block.

    Raises:
        UserError: the packages of the extra "serve" are not installed.
    """
    uvicorn = _uvicorn()
    body = json.dumps({"status": "loading", "error": {"param": None, **LOADING}}).encode()
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1"), (b"connection", b"close")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, lifespan="off", log_level="warning", ws="none")
    server = uvicorn.Server(config)
    with socket.dup() as copy:  # as a server closes what it has listened to
        thread = threading.Thread(target=server.run, kwargs={"sockets": [copy]}, name="loading", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


def _uvicorn() -> Any:
    """Import what serving needs, all of it: what is missing is better said before a network is read."""
    try:
        return [importlib.import_module(name) for name in ("fastapi", "uvicorn")][-1]
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs the package {error.name}: pip install 'anyorder[serve]'.") from None


def run(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, name: str, socket: sockets.socket, engine: Engine, *,
    api_key: str | None = None, most_tokens: int | None = None,
) -> None:  # fmt: skip
    """Serve a network until SIGINT or SIGTERM, after which what has come is written to its end.

    The server of a network that is split over processes also ends where its engine fails.

    Args:
        model, tokenizer: the network and its tokenizer, if it has one.
        name: of the network, as requests call it.
        socket: that listens.
        engine: writes.
        api_key, most_tokens: see `anyorder.serving.app.Server`.

    Raises:
        UserError: the packages of the extra "serve" are not installed.
    """
    uvicorn = _uvicorn()
    from anyorder.serving.app import Server, build_app

    model = with_packages(model, making=False)
    server = Server(
        model=model, tokenizer=tokenizer, name=name, engine=engine, api_key=api_key, most_tokens=most_tokens
    )
    config = uvicorn.Config(build_app(server), log_level="warning", timeout_keep_alive=75)
    runner = uvicorn.Server(config)
    if is_split(model):
        engine.on_failure = functools.partial(setattr, runner, "should_exit", True)
    runner.run(sockets=[socket])
