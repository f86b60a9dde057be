"""`anyorder fuse compare`."""

from __future__ import annotations

from pathlib import Path

from anyorder.cli._options import ModelOptions
from anyorder.cli.fuse._options import ComparedQuestionOptions
from anyorder.utils.annotations import Listed


def command(
    *,
    model: str,
    output: Path = Path("comparison"),
    asking: ComparedQuestionOptions,
    counts: list[int] = [],  # noqa: B006 (never changed)
    methods: list[Listed] = [],  # noqa: B006 (never changed)
    batch_size: int = 16,
    loading: ModelOptions,
) -> None:
    """Answer the same questions by every method, and compare how often each is right and what it costs.

    Interrupted, the same command resumes.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        output: Folder for the results files of each method, table.md, comparison.json and comparison.png.
        asking: which questions are asked, and how.
        counts: Numbers of phrasings to compare at, such as 1,3,5; 1, 2, 4, ... and all unless given.
        methods: Compare only these, beside a single phrasing. May be repeated; all of fuse run unless given.
        batch_size: Questions at a time; changes speed and memory.
        loading: how the model is read.
    """
    from dataclasses import asdict

    from rich.progress import TaskID

    from anyorder.cli._console import PlainConsole
    from anyorder.cli.fuse._asking import load, question_progress
    from anyorder.errors import UserError
    from anyorder.evaluation.comparison import COMPARED, compare
    from anyorder.evaluation.comparison_plot import draw
    from anyorder.evaluation.protocol import RUN_METHODS
    from anyorder.utils.json_text import json_text

    for method in methods:
        if method not in RUN_METHODS:
            raise UserError(f"method is {method!r}: choose one of {', '.join(RUN_METHODS)}.")
    protocol = asking.to_protocol()
    drawn = protocol.draw()  # before a large model is read, so that mistakes are found at once
    notes = PlainConsole(stderr=True)
    loaded, tokenizer = load(notes, model, **asdict(loading))
    parts = protocol.parts(drawn, tokenizer)
    with question_progress(notes) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        comparison = compare(
            loaded, tokenizer, drawn.questions, parts,
            {"model": model, "revision": loading.revision, "dtype": loading.dtype, **protocol.settings()}, output,
            counts=counts, methods=[method for method in COMPARED if not methods or method.name in methods],
            max_new_tokens=protocol.max_new_tokens, batch_size=batch_size, seed=protocol.seed, on_progress=on_progress,
        )  # fmt: skip
    table = comparison.markdown()
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    (output / "comparison.json").write_text(json_text(comparison.to_json(), indent=1) + "\n", encoding="utf-8")
    draw(comparison, output / "comparison.png")
    print(f"{comparison.questions} questions\n\n{table}")
    notes.print(f"in {output}: table.md, comparison.json, comparison.png", style="dim", soft_wrap=True)
