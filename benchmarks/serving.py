"""The server against Python's functions: throughput in parallel, first tokens beside long texts, overhead, memory.

Run: OMP_NUM_THREADS=1 python benchmarks/serving.py MODEL [--tokenizer PATH] [--new 128] [--requests 2000]

Server and clients are one process each; Python's functions run in the server's, over the same weights, as two copies of
them in memory are not equally fast. Candidates take turns, and medians are compared. Writes
benchmarks/results/serving-NAME.json, with the name that --name gives.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import torch

import anyorder
from anyorder.serving.engine import Engine, Limits
from anyorder.serving.run import listen, run

RESULTS = Path(__file__).parent / "results"
PARALLEL = 16
PROMPT = "Once upon a time, there was a little girl"


def serve(place: str, tokenizer: str | None, socket: Any, orders: Connection) -> None:
    """Run the server in a process of its own, which also continues the prompt by Python's function when it is told.

    Args:
        place, tokenizer: of the network.
        socket: that listens.
        orders: receives a number of tokens, and is answered by how many were written.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    model, words = anyorder.load(place, tokenizer=tokenizer, device="cpu")
    engine = Engine(Limits(running=PARALLEL, queued=4096))
    threading.Thread(target=run, args=(model, words, "bench", socket, engine), daemon=True).start()
    while True:
        new = orders.recv()
        out = anyorder.generate(model, words, PROMPT, max_new_tokens=new, compile=False)
        orders.send(len(out.token_ids))


def body_of(new: int, ends: Sequence[int], **others: Any) -> dict[str, Any]:
    """A request of exactly so many tokens."""
    return {"prompt": PROMPT, "max_tokens": new, "logit_bias": {str(end): -100 for end in ends}, **others}


def completed(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    response = client.post("/v1/completions", json=body)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def seconds(write: Callable[[], object]) -> float:
    """Of one run."""
    started = time.perf_counter()
    write()
    return time.perf_counter() - started


def throughput(client: httpx.Client, body: dict[str, Any], process: int, repeats: int) -> dict[str, float]:
    """Tokens per second of requests one after the other and all at once; also the ratio of processor times."""

    def one_by_one() -> None:
        for _ in range(PARALLEL):
            completed(client, body)

    clock: dict[str, list[float]] = {"one_by_one": [], "parallel": []}
    processor: dict[str, list[float]] = {name: [] for name in clock}
    with ThreadPoolExecutor(PARALLEL) as pool:
        ways: dict[str, Callable[[], object]] = {
            "one_by_one": one_by_one,
            "parallel": lambda: list(pool.map(completed, [client] * PARALLEL, [body] * PARALLEL)),
        }
        for _ in range(repeats):
            for name, write in ways.items():
                before = processor_seconds(process)
                clock[name].append(seconds(write))
                processor[name].append(processor_seconds(process) - before)
    tokens = PARALLEL * body["max_tokens"]
    rates = {name: tokens / statistics.median(times) for name, times in clock.items()}
    costs = {name: statistics.median(times) for name, times in processor.items()}
    return rates | {
        "ratio": rates["parallel"] / rates["one_by_one"], "processor_ratio": costs["one_by_one"] / costs["parallel"]
    }  # fmt: skip


def overhead(client: httpx.Client, new: int, orders: Connection, process: int, repeats: int) -> dict[str, float]:
    """What HTTP and engine cost one client at a time, by the clock and by the processor time of the server."""
    body = {"prompt": PROMPT, "max_tokens": new}

    def python() -> None:
        orders.send(new)
        orders.recv()

    def stream() -> None:
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            for _ in response.iter_lines():
                pass

    ways: dict[str, Callable[[], object]] = {
        "python": python, "whole": lambda: completed(client, body), "streamed": stream,
    }  # fmt: skip
    clock: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in list(ways) if turn % 2 else reversed(ways):
            before = processor_seconds(process)
            clock[name].append(seconds(ways[name]))
            processor[name].append(processor_seconds(process) - before)
    orders.send(new)
    written = orders.recv()
    rates = {name: written / statistics.median(times) for name, times in clock.items()}
    costs = {name: statistics.median(times) for name, times in processor.items()}
    others = ("whole", "streamed")
    return (
        rates
        | {f"{name}_ratio": rates[name] / rates["python"] for name in others}
        | {f"{name}_processor_ratio": costs[name] / costs["python"] for name in others}
    )


def processor_seconds(process: int) -> float:
    """That a process has taken so far."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def first_token(client: httpx.Client, ends: Sequence[int], new: int) -> dict[str, float]:
    """Seconds to the first token of a short request, alone and beside eight long ones."""

    def short() -> float:
        started = time.perf_counter()
        with client.stream("POST", "/v1/completions", json=body_of(2, ends, stream=True)) as response:
            next(line for line in response.iter_lines() if line.startswith("data: "))
            return time.perf_counter() - started

    alone = statistics.median(short() for _ in range(5))
    with ThreadPoolExecutor(8) as pool:
        long = [pool.submit(completed, client, body_of(new, ends)) for _ in range(8)]
        time.sleep(0.2)
        beside = statistics.median(short() for _ in range(3))
        for one in long:
            one.result()
    return {"alone": alone, "beside_8": beside}


def memory(client: httpx.Client, process: int, requests: int, ends: Sequence[int]) -> dict[str, float]:
    """MiB of the server after the first tenth of many requests, and after all."""

    def resident() -> float:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    found = []
    with ThreadPoolExecutor(PARALLEL) as pool:
        for count in (requests // 10, requests - requests // 10):
            list(pool.map(lambda number: completed(client, body_of(4 + number % 13, ends)), range(count)))
            found.append(resident())
    return {"after_a_tenth": found[0], "after_all": found[1], "requests": requests}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--name", default="260K")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    ends = anyorder.load(options.model, tokenizer=options.tokenizer, device="cpu")[0].config.eos_token_ids
    socket = listen("127.0.0.1", 0)
    orders, served = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(
        target=serve, args=(options.model, options.tokenizer, socket, served), daemon=True
    )
    server.start()
    address = f"http://127.0.0.1:{socket.getsockname()[1]}"
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    with httpx.Client(base_url=address, timeout=600, limits=limits) as client:
        completed(client, body_of(4, ends))
        assert server.pid is not None
        found = {
            "threads": torch.get_num_threads(),
            "new": options.new,
            "overhead": overhead(client, options.new, orders, server.pid, 3 * options.repeats),
            "throughput": throughput(client, body_of(options.new, ends), server.pid, options.repeats),
            "first_token_seconds": first_token(client, ends, options.new),
            "memory_mib": memory(client, server.pid, options.requests, ends),
        }
    server.terminate()
    server.join()
    text = json.dumps(found, indent=1)
    print(text)
    RESULTS.joinpath(f"serving-{options.name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
