"""`anyorder bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def command(
    *,
    sizes: list[Literal["260K", "125M"]] = [],  # noqa: B006 (never changed)
    dtypes: list[Literal["float32", "bfloat16"]] = [],  # noqa: B006 (never changed)
    tasks: list[Literal["decode", "prefill", "train"]] = [],  # noqa: B006 (never changed)
    new_tokens: int = 128,
    repeats: int = 5,
    device: str = "auto",
    clock: Literal["wall", "cpu"] = "wall",
    output: Path | None = None,
) -> None:
    """Measure speed beside transformers and llama.cpp, taking turns.

    Args:
        sizes: Networks: 260K, 125M. May be repeated; both unless given.
        dtypes: Of the weights: float32, bfloat16. May be repeated; both unless given.
        tasks: decode, prefill, train. May be repeated; all unless given.
        new_tokens: Tokens that each run of decoding writes.
        repeats: Runs of each candidate, after one that is not counted; medians are compared.
        device: cpu, cuda, or auto.
        clock: Which seconds are counted; cpu, the processor's own, on a busy machine, with OMP_NUM_THREADS=1.
        output: New file for the timings, as JSON.
    """
    import dataclasses

    from rich.table import Table

    from anyorder.checkpoints.weights import resolve_device, resolve_dtype
    from anyorder.cli._console import PlainConsole
    from anyorder.inspection import speed
    from anyorder.utils.files import check_place, whole_file
    from anyorder.utils.json_text import json_text
    from anyorder.utils.numbers import check_positive

    for name, value in (("new_tokens", new_tokens), ("repeats", repeats)):
        check_positive(name, value)
    chosen: list[speed.Task] = [*(tasks or ("decode", "prefill", "train"))]
    if output is not None:
        check_place(output, folder=False)  # before minutes are spent
    where = resolve_device(device)
    weights = [resolve_dtype(dtype) for dtype in dtypes or ("float32", "bfloat16")]

    notes, console = PlainConsole(stderr=True), PlainConsole()
    if not console.is_terminal:  # a file has no edge at which the table must be cut
        console.width = 120
    if "decode" in chosen and not speed.has_llama_cpp():
        missing = "llama.cpp is left out: it needs the packages of anyorder[bench], which are compiled for minutes"
        notes.print(missing, soft_wrap=True)
    bytes_per_second = speed.bandwidth(where)
    timings = []
    for size in sizes or speed.SIZES:
        for dtype in weights:
            with notes.status(f"{size}, {dtype}"):
                timings += speed.compare(
                    size, dtype, chosen, new_tokens=new_tokens, repeats=repeats, device=where, clock=clock
                )  # fmt: skip
    record = {"machine": speed.machine(), "bytes_per_second": bytes_per_second, "clock": clock}
    console.print(", ".join(f"{name} {value}" for name, value in speed.machine().items()))
    console.print(f"memory bandwidth {bytes_per_second / 1e9:.1f} GB/s, {clock} clock")
    table = Table(box=None, pad_edge=False)
    for column in ("network", "weights", "task", "candidate", "tokens/s", "ratio", "bandwidth", "first run"):
        left = column in ("network", "weights", "task", "candidate")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    base = {
        (t.size, t.dtype, t.task): t.tokens_per_second
        for t in reversed(timings)
        if "transformers, eager" in t.candidate
    }
    for t in timings:
        share = t.weight_bytes * t.tokens_per_second / bytes_per_second
        table.add_row(
            t.size, t.dtype, t.task, t.candidate, f"{t.tokens_per_second:.1f}",
            f"{t.tokens_per_second / base[t.size, t.dtype, t.task]:.2f}",
            f"{share:.2f}" if t.task == "decode" else "", f"{t.first:.1f} s",
        )  # fmt: skip
    console.print(table)
    if output is not None:
        with whole_file(output) as partial:
            text = json_text(record | {"timings": [dataclasses.asdict(t) for t in timings]}, indent=1)
            partial.write_text(text, encoding="utf-8")
