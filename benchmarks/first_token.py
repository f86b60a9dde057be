"""From the start of a process to its text: our command with kept packages and without, and transformers' script.

Run: OMP_NUM_THREADS=1 python benchmarks/first_token.py MODEL [--tokenizer PATH] [--name NAME] [--new 64] [--repeats 5]

Both read a folder that `anyorder.convert` makes, in float32, and write the same tokens, which is checked. Packages of
layers are made first by `anyorder compile`, in an empty folder, which is timed, too. Each run is a process of its own;
candidates take turns, and medians are compared: seconds by the clock and of the processor of the whole process; and
within ours, seconds from the network in memory to its first two tokens, the second of which is the first from the
cache. Writes benchmarks/results/first-token-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyorder
from anyorder.inspection.speed import machine

RESULTS = Path(__file__).parent / "results"
PROMPT = "Once upon a time, there was a little girl"

TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, new = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=int(new), do_sample=False)
print(tokenizer.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""

FIRST = """
import sys, time, anyorder
model, tokenizer = anyorder.load(sys.argv[1], dtype="float32", device="cpu")
started = time.perf_counter()
pieces = anyorder.generate(model, tokenizer, sys.argv[2], max_new_tokens=2, compile=sys.argv[3] == "kept" and "auto")
print(time.perf_counter() - started)
"""


def run(words: list[str], cache: str) -> tuple[str, float, float]:
    """Run a process; return what it prints, and its seconds by the clock and of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(words, env=os.environ | {"XDG_CACHE_HOME": cache}, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: str, cache: str, new: int, repeats: int) -> dict[str, object]:
    """Make packages, then let all candidates take turns."""
    python = sys.executable
    as_stored = ["--dtype", "float32", "--device", "cpu"]
    made = run([python, "-m", "anyorder", "compile", folder, *as_stored], cache)[1]
    ours = [python, "-m", "anyorder", "generate", folder, PROMPT, *as_stored]
    ours += ["--max_new_tokens", str(new), "--compile"]
    ways = {
        "transformers": [python, "-c", TRANSFORMERS, folder, PROMPT, str(new)],
        "anyorder, eager": [*ours, "never"],
        "anyorder, kept packages": [*ours, "auto"],
    }
    first = {name: [python, "-c", FIRST, folder, PROMPT, name] for name in ("eager", "kept")}
    clock: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, list[float]] = {name: [] for name in first}
    texts = set()
    for _ in range(repeats):
        for name, way in ways.items():
            text, seconds, used = run(way, cache)
            texts.add(text.strip().removeprefix(PROMPT).strip())  # our command writes the prompt, too
            clock[name].append(seconds)
            processor[name].append(used)
        for name, way in first.items():
            tokens[name].append(float(run(way, cache)[0]))
    assert len(texts) == 1, texts
    packages = [place.name for place in (Path(cache) / "anyorder" / "layers").iterdir()]
    medians = {name: statistics.median(values) for name, values in clock.items()}
    return {
        "new": new,
        "packages": len(packages),
        "made_in_seconds": made,
        "seconds": medians,
        "processor_seconds": {name: statistics.median(values) for name, values in processor.items()},
        "transformers_to": {name: medians["transformers"] / value for name, value in medians.items()},
        "two_tokens_after_loading": {name: statistics.median(values) for name, values in tokens.items()},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--name", default="135M")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, cache = str(Path(place) / "network"), str(Path(place) / "cache")
        anyorder.convert(options.model, folder, tokenizer=options.tokenizer, dtype="float32")
        found = {"machine": machine(), **measure(folder, cache, options.new, options.repeats)}
    text = json.dumps(found, indent=1)
    print(text)
    RESULTS.joinpath(f"first-token-{options.name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
