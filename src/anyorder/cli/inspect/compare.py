"""`anyorder inspect compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli._options import CheckpointOptions
from anyorder.utils.annotations import Listed

if TYPE_CHECKING:
    from anyorder.inspection.compare import Compared


def command(
    model: str,
    prompts: list[str] = [],  # noqa: B006 (never changed)
    *,
    method: list[Listed] = [],  # noqa: B006 (never changed)
    max_new_tokens: int = 64,
    seed: int = 0,
    repeats: int = 1,
    samples: int = 64,
    drift: bool = False,
    loading: CheckpointOptions,
    json: Path | None = None,
) -> None:
    """Write the same prompts by several samplers, and compare speed and likelihood.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        prompts: Texts to continue, each in quotes.
        method: An order such as left-to-right or groups:4, or a preset of diffusion with options, such as
            fast-dllm,block_length=8,threshold=0.9; may be repeated. Those that suit the model unless given.
        max_new_tokens: Tokens to write per text.
        seed: Decides what is drawn.
        repeats: Runs of each, taking turns; their median time counts.
        samples: Masked copies of each text that its likelihood is estimated from, where the model diffuses.
        drift: Measure, too, how far approximate caches are from passes over everything: the divergence of their
            distributions in nats, and the share of most probable tokens that they change.
        loading: how the model is read.
        json: New file for all of it.
    """
    import dataclasses

    from rich.table import Table

    from anyorder.api.text import GAP
    from anyorder.cli._console import PlainConsole
    from anyorder.errors import UserError
    from anyorder.inspection.compare import compare_sampling_methods, method_named
    from anyorder.likelihood.diffusion import MonteCarlo
    from anyorder.utils.files import check_place, whole_file
    from anyorder.utils.json_text import json_text

    if not prompts:
        raise UserError("there is no prompt: give at least one text, in quotes.")
    if json is not None:
        check_place(json, folder=False)
    methods = {words: method_named(words) for words in _with_options(method)} or None
    likelihood = MonteCarlo(samples=samples)
    notes = PlainConsole(stderr=True)
    loaded, tokenizer = loading.load(model, notes)
    with notes.status("writing") as status:
        compared = compare_sampling_methods(
            loaded, prompts, methods, tokenizer=tokenizer, max_new_tokens=max_new_tokens, seed=seed, repeats=repeats,
            likelihood=likelihood, drift=drift, on_method=lambda name: status.update(f"writing by {name}"),
        )  # fmt: skip
    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for name in ("passes", "tokens", "tokens/pass", "tokens/s", "nats/token", *(("drift", "changed") if drift else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for one in compared:
        error = f" ± {one.standard_error / one.scored:.2f}" if one.standard_error and one.scored else ""
        table.add_row(
            one.name, str(one.passes), str(one.tokens), f"{one.tokens_per_pass:.2f}", f"{one.tokens_per_second:.1f}",
            f"{'≤ ' if one.bound else ''}{one.nats_per_token:.2f}{error}", *(_drift(one) if drift else ()),
        )  # fmt: skip
    console = PlainConsole()
    console.print(table)
    if any(one.bound for one in compared):
        notes.print("≤: a bound, estimated by masking at random; the network's own value is not known", style="dim")
    for one in compared:
        console.print(f"\n{one.name}", style="bold")
        for prompt, text, full_text in zip(prompts, one.texts or (), one.full_texts or (), strict=bool(one.texts)):
            if GAP in prompt:
                console.print(full_text, soft_wrap=True)
                continue
            console.print(prompt, style="dim", end="", soft_wrap=True)
            console.print(text, soft_wrap=True)
    if json is not None:
        with whole_file(json) as partial:
            partial.write_text(json_text([dataclasses.asdict(one) for one in compared], indent=1), encoding="utf-8")
        notes.print(f"wrote {json}", soft_wrap=True)


def _with_options(parts: Sequence[str]) -> list[str]:
    """Return each method with its options, which have an equals sign, behind it again."""
    methods: list[str] = []
    for part in parts:
        methods[-1:] = [f"{methods[-1]},{part}"] if methods and "=" in part else [*methods[-1:], part]
    return methods


def _drift(one: Compared) -> tuple[str, str]:
    """Return the cells of a method's drift, empty where its cache is exact or none."""
    if one.drift is None or one.changed is None:
        return "", ""
    return f"{one.drift:.3f}", f"{one.changed:.1%}"
