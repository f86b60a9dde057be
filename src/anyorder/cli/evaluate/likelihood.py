"""`anyorder evaluate likelihood`."""

from __future__ import annotations

from pathlib import Path

from anyorder.cli._options import ModelOptions, ProcessOptions
from anyorder.utils.annotations import Listed


def command(
    model: str,
    data: Path,
    *,
    orders: list[Listed] = [],  # noqa: B006 (never changed)
    length: int = 128,
    gap: int | None = None,
    texts: int = 64,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    loading: ModelOptions,
    splitting: ProcessOptions,
    json: bool = False,
) -> None:
    """Compute how probable a model finds texts, in each of several orders; of diffusion, a bound, marked by ≤.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        data: File or folder of JSONL, JSON or text; it is cut into texts of equal length.
        orders: An order, such as left-to-right, any-order, random, groups:4 or diffusion; may be repeated. What the
            model writes unless given.
        length: Tokens of a text, with the one that begins it, which is given.
        gap: Score so many tokens in the middle of each text alone, all others being given; from left to right, those
            before them.
        texts: Texts to read at most.
        draws: Draws of each random order, averaged.
        seed: Decides random orders.
        batch_size: Texts to read at a time; changes speed and memory alone.
        loading: how the model is read.
        splitting: what several processes do together.
        json: Print one JSON object a line instead of a table.
    """
    import dataclasses
    import math

    from rich.progress import Progress
    from rich.table import Table

    from anyorder.cli._console import PlainConsole
    from anyorder.evaluation.order_search import by_likelihood
    from anyorder.evaluation.texts import cut_texts, gap_marks, orders_by_name
    from anyorder.utils.json_text import json_text

    marks = gap_marks(length, gap)
    notes = PlainConsole(stderr=True)
    processes = splitting.begin(loading.device)
    loaded, tokenizer = loading.load(model, notes, processes)
    with notes.status(f"reading {data}"):
        rows = cut_texts(data, tokenizer, loaded.config, length=length, most=texts)
    named = orders_by_name(orders, loaded.config)
    with Progress(console=notes, transient=True) as progress:
        task = progress.add_task("reading texts", total=len(named) * draws * len(rows))
        found = by_likelihood(
            loaded, rows, named, [marks] * len(rows), draws=draws, seed=seed, batch_size=batch_size,
            done=lambda count: progress.advance(task, count), processes=processes,
        )  # fmt: skip
    if json:
        for order in found:
            print(json_text(dataclasses.asdict(order)))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("order")
    for name in ("nats/token", "perplexity", "between draws"):
        table.add_column(name, justify="right", no_wrap=True)
    for order in found:
        spread = f"{order.between_draws:.2f}" if order.between_draws else ""
        most = "≤ " if order.bound else ""
        nats = f"{most}{-order.per_token:.3f} ± {order.standard_error:.3f}"
        table.add_row(order.name, nats, f"{most}{math.exp(-order.per_token):.2f}", spread)
    PlainConsole().print(table)
    notes.print(f"{len(rows)} texts of {length} tokens, {marks.count(False)} of each scored", style="dim")
    if any(order.bound for order in found):
        notes.print("≤: a bound, estimated by masking at random; the network's own value is not known", style="dim")
