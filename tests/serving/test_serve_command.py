"""`anyorder serve` as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import anyorder
from anyorder.cli import main
from anyorder.errors import UserError
from anyorder.serving.run import answered_meanwhile, listen
from tests.serving.networks import four_modes
from tests.serving.test_openai_client import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("serve") / "tiny"
    anyorder.save(*four_modes(max_position_embeddings=4096), place)
    return place


@contextmanager
def process(
    folder: Path, *options: str, start: Sequence[str] = (sys.executable, "-m", "anyorder")
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and its address."""
    words = [*start, "serve", str(folder), "--port", "0", *options]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert server.stderr is not None
    try:
        line = next(line for line in server.stderr if "is served at" in line)
        found = re.search(r"http://\S+:\d+", line)
        assert found, line
        for _ in range(300):
            try:
                if httpx.get(f"{found[0]}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield server, found[0]
    finally:
        server.kill()
        server.wait()


def test_a_port_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"error: --port is {port} at host '127.0.0.1', which cannot be had (address already in use" in error
    with pytest.raises(UserError, match="port is 70000: give a number from 0 to 65535"):
        listen("127.0.0.1", 70_000)
    with pytest.raises(UserError, match=r"at host 'nowhere\.invalid', which cannot be had"):
        listen("nowhere.invalid", 0)


def test_while_a_network_is_read() -> None:
    """Requests are answered, and the socket listens afterwards as before."""
    with listen("127.0.0.1", 0) as place:
        address = f"http://127.0.0.1:{place.getsockname()[1]}"
        for _ in range(2):
            with answered_meanwhile(place):
                for path in ("/health", "/v1/models"):
                    found = httpx.get(f"{address}{path}", timeout=60)
                    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
                    assert found.json()["status"] == "loading"
                    assert found.json()["error"]["message"] == "the network is being read: try again in a moment."
        with pytest.raises(httpx.TimeoutException):  # heard, but not answered yet
            httpx.get(f"{address}/health", timeout=0.2)
        with pytest.raises(UserError, match="broken"), answered_meanwhile(place):
            raise UserError("broken")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_package_that_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with listen("127.0.0.1", 0) as place, pytest.raises(UserError) as error, answered_meanwhile(place):
        pytest.fail("the network is read")
    assert str(error.value) == f"serving needs the package {package}: pip install 'anyorder[serve]'."


@pytest.mark.slow
def test_what_runs_at_sigterm_is_written_to_its_end(folder: Path) -> None:
    """While what comes later is refused."""
    body = {"prompt": "a", "max_tokens": 600, "logit_bias": {"2": -100}, "stream": True}
    with process(folder, "--api_key", "secret", "--name", "mine", "--max_new_tokens", "700") as (server, address):
        client = httpx.Client(base_url=address, headers={"authorization": "Bearer secret"}, timeout=60)
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        assert httpx.get(f"{address}/v1/models").status_code == 401
        refused = client.post("/v1/completions", json=body | {"max_tokens": 701})
        assert refused.json()["error"]["message"] == "max_tokens is 701: this server writes at most 700."
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            *_, last, done = [line for line in lines if line.startswith("data: ")]
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
        assert server.wait(20) in (0, -signal.SIGTERM)


HANGING = """
import httpx, sys
with httpx.stream("POST", sys.argv[1] + "/v1/completions", json={"prompt": "a", "max_tokens": 4000,
                  "logit_bias": {"2": -100}, "stream": True}, timeout=60) as stream:
    for line in stream.iter_lines():
        print(line, flush=True)
"""


@pytest.mark.slow
def test_killed_clients_free_their_rows(folder: Path) -> None:
    def running(address: str) -> float:
        text = httpx.get(f"{address}/metrics").text
        found = re.search(r"^anyorder_texts_running (\S+)", text, re.MULTILINE)
        assert found
        return float(found[1])

    with process(folder) as (_, address):
        clients = [
            subprocess.Popen([sys.executable, "-c", HANGING, address], stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        assert running(address) == 3
        for client in clients:
            client.kill()
            client.wait()
        wait_until(lambda: running(address) == 0)
