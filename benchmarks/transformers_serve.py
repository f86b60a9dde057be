"""The server against `transformers serve`, on the same network, with 1, 4 and 16 clients.

Run: OMP_NUM_THREADS=1 python benchmarks/transformers_serve.py MODEL [--new 32] [--repeats 3]

MODEL is whatever `anyorder.load` takes; both servers read it from a folder that `anyorder.convert` makes, in float32.
Each is a process of its own, with the clients in this one. They take turns, and medians are compared: of tokens per
second, and of the processor time that a server takes for a token, on which other work of the machine counts less.
Prompts are continued greedily, so both write the same tokens, which is checked. Writes
benchmarks/results/transformers-serve-NAME.json, with the name that --name gives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import anyorder
from anyorder.serving.run import listen

RESULTS = Path(__file__).parent / "results"
CLIENTS = (1, 4, 16)
PROMPTS = [f"Here is a short story about {number} friends who" for number in range(2, 18)]


@contextmanager
def server(words: Sequence[str], port: int) -> Iterator[tuple[httpx.Client, int]]:
    """A client of the server that a command starts, once it answers, and the number of its process."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=1200, limits=limits) as client:
            while True:
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise RuntimeError(f"{' '.join(words)} has ended") from None
                time.sleep(0.2)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with listen("127.0.0.1", 0) as socket:
        return int(socket.getsockname()[1])


def commands(folder: str) -> dict[str, list[str]]:
    """How each server is started, but for its port."""
    ours = [
        sys.executable,
        "-m",
        "anyorder",
        "serve",
        folder,
        "--name",
        folder,
        "--max_running",
        "16",
        "--device",
        "cpu",
    ]
    theirs = [shutil.which("transformers") or "transformers", "serve", folder, "--device", "cpu", "--dtype", "float32"]
    continuous = [*theirs, "--continuous-batching"]
    return {"anyorder": ours, "transformers": theirs, "transformers, continuous batching": continuous}


def answer(client: httpx.Client, folder: str, prompt: str, new: int) -> tuple[str, int]:
    """The text that continues a prompt, and the number of its tokens."""
    body = {"model": folder, "prompt": prompt, "max_tokens": new, "temperature": 0}
    response = client.post("/v1/completions", json=body)
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return str(found["choices"][0]["text"]), int(found["usage"]["completion_tokens"])


def rate(client: httpx.Client, process: int, folder: str, clients: int, new: int) -> tuple[float, float, list[str]]:
    """Tokens per second of so many clients at once, seconds of the server's processor for a token, and the texts."""
    with ThreadPoolExecutor(clients) as pool:
        started, before = time.perf_counter(), processor_seconds(process)
        found = list(pool.map(lambda prompt: answer(client, folder, prompt, new), PROMPTS[:clients]))
        seconds, taken = time.perf_counter() - started, processor_seconds(process) - before
    tokens = sum(count for _, count in found)
    return tokens / seconds, taken / tokens, [text for text, _ in found]


def processor_seconds(process: int) -> float:
    """That all threads of a process have taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: str, new: int, repeats: int) -> dict[str, Any]:
    """Medians of all servers that start, and their ratios to the first; by server, and by number of clients."""
    rates: dict[str, dict[int, list[float]]] = {}
    costs: dict[str, dict[int, list[float]]] = {}
    texts: dict[int, list[str]] = {}
    same: dict[str, bool] = {}
    for turn in range(repeats):
        for name, words in commands(folder).items():
            port = free_port()
            try:
                with server([*words, "--port", str(port)], port) as (client, process):
                    rate(client, process, folder, 1, 2)  # reads the network
                    for clients in CLIENTS:
                        found, cost, written = rate(client, process, folder, clients, new)
                        rates.setdefault(name, {}).setdefault(clients, []).append(found)
                        costs.setdefault(name, {}).setdefault(clients, []).append(cost)
                        same[name] = same.get(name, True) and written == texts.setdefault(clients, written)
            except (httpx.HTTPError, RuntimeError, KeyError) as error:
                print(f"turn {turn}: {name}: {error!r}"[:300], file=sys.stderr)
    return {
        "new": new, "tokens_per_second": medians(rates), "anyorder_to": ratios(medians(rates)),
        "processor_seconds_per_token": medians(costs), "processor_of_anyorder_to": ratios(medians(costs)),
        "same_texts": same,
    }  # fmt: skip


def medians(values: dict[str, dict[int, list[float]]]) -> dict[str, dict[int, float]]:
    """The median of each list."""
    return {name: {key: statistics.median(one) for key, one in of_name.items()} for name, of_name in values.items()}


def ratios(values: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """The first entry over each other one."""
    first, *others = values
    return {name: {key: values[first][key] / value for key, value in values[name].items()} for name in others}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--name", default="135M")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(place) / "network")
        model, tokenizer = anyorder.load(options.model, dtype="float32", device="cpu")
        anyorder.save(model, tokenizer, folder)
        del model
        found = {"threads": os.environ.get("OMP_NUM_THREADS"), **measure(folder, options.new, options.repeats)}
    text = json.dumps(found, indent=1)
    print(text)
    RESULTS.joinpath(f"transformers-serve-{options.name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
