"""A network that is split over two processes is served as the whole one is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import anyorder
from tests.parallel.launch import on_processes
from tests.serving.networks import END
from tests.serving.test_serve_command import folder, process
from tests.serving.together import served

__all__ = ["folder"]

COMMAND = """
import os, sys
from pathlib import Path
from anyorder.cli import main
code = main(sys.argv[2:])
(Path(sys.argv[1]) / os.environ["RANK"]).write_text(str(code))
"""

LONG = {"prompt": "a", "max_tokens": 100, "logit_bias": {str(END): -100}, "stream": True}


def test_two_engines_write_what_one_does() -> None:
    on_processes(2, served)


@contextmanager
def server(folder: Path, codes: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """torchrun with a server of two processes, which write their exit codes into a folder; and its address."""
    codes.mkdir()
    script = codes.parent / "command.py"
    script.write_text(COMMAND)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    start = (sys.executable, *torchrun, str(script), str(codes))
    with process(folder, "--tensor_parallel", "2", "--dtype", "float64", start=start) as (launcher, address):
        try:
            yield launcher, address
        finally:
            launcher.terminate()  # which ends its processes, as killing it would not
            launcher.wait(60)


@pytest.mark.slow
def test_the_command_drains_at_sigterm_and_all_processes_end(folder: Path, tmp_path: Path) -> None:
    whole, tokenizer = anyorder.load(folder, dtype="float64")
    ways: list[dict[str, Any]] = [
        {"prompt": "the cat", "order": order, "seed": 3, "temperature": 0.8, "max_tokens": 16}
        for order in ("left-to-right", "random", "diffusion", "blocks:4")
    ]
    with (
        server(folder, tmp_path / "codes") as (torchrun, address),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        with client.stream("POST", "/v1/completions", json=LONG | {"max_tokens": 3000}) as gone:
            next(gone.iter_lines())
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda body: client.post("/v1/completions", json=body).json(), ways))
        for body, answer in zip(ways, answers, strict=True):
            expected = anyorder.generate(
                whole, tokenizer, body["prompt"], order=body["order"], seed=3, temperature=0.8, max_new_tokens=16
            )
            assert answer["choices"][0]["text"] == expected.text, body
        scores = client.post("/v1/score", json={"input": "the cat", "order": "diffusion", "samples": 32}).json()
        assert scores["data"][0]["log_prob"] < 0
        question = {"phrasings": ["hello", "hi"], "max_tokens": 4}
        assert "shares" not in client.post("/v1/fuse", json=question).json()
        text = client.get("/metrics").text
        assert "anyorder_requests_cancelled_total 1.0" in text
        with client.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = stream.iter_lines()
            next(lines)
            torchrun.send_signal(signal.SIGTERM)
            *_, last, done = [line for line in lines if line.startswith("data: ")]
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        torchrun.wait(30)
    assert {name: (tmp_path / "codes" / name).read_text() for name in "01"} == {"0": "0", "1": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["0", "1"])
def test_a_killed_process_ends_the_other(folder: Path, tmp_path: Path, killed: str) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("finds processes as Linux names them")
    with server(folder, tmp_path / "codes") as (torchrun, address):
        with httpx.stream("POST", f"{address}/v1/completions", json=LONG | {"max_tokens": 3000}, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            processes = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
            [one] = [
                pid for pid in processes if f"\0RANK={killed}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
            ]
            os.kill(int(one), signal.SIGKILL)
            assert torchrun.wait(30) != 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
