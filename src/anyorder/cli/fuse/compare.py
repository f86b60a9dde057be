"""`anyorder fuse compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from anyorder.utils.annotations import Listed


def command(
    *,
    model: str,
    dataset: str,
    output: Path = Path("comparison"),
    num_paraphrases: int | None = None,
    indices: list[int] = [],  # noqa: B006 (never changed)
    counts: list[int] = [],  # noqa: B006 (never changed)
    methods: list[Listed] = [],  # noqa: B006 (never changed)
    max_samples: int | None = 250,
    shots: int = 5,
    shots_from: str | None = None,
    instruction: str | None = None,
    chat: Literal["auto", "always", "never"] = "auto",
    split: str | None = None,
    form: Literal["question", "mask", "opening"] | None = None,
    relations: list[Listed] = [],  # noqa: B006 (never changed)
    max_new_tokens: int = 10,
    batch_size: int = 16,
    seed: int = 42,
    tokenizer: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
) -> None:
    """Answer the same questions in every way, and compare how often each is right and what it costs.

    Interrupted, the same command goes on where it was.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name).
        dataset: Questions: a .jsonl file, the folder of PARAREL or WebQuestions, a .parquet file, a folder of
            datasets, or the id of a data set on the hub.
        output: Folder for the results files of each way, table.md, comparison.json and comparison.png.
        num_paraphrases: Take the first so many phrasings of each question; 5 unless indices are given.
        indices: Which phrasings, counted from 0, such as 0,1,2.
        counts: Numbers of phrasings to compare at, such as 1,3,5; 1, 2, 4, ... and all unless given.
        methods: Compare only these, beside a single phrasing. May be repeated; all of fuse run unless given.
        max_samples: Ask only so many questions, drawn with the seed.
        shots: Questions shown with their answer in front, drawn from the set, of which these are not asked.
        shots_from: Another set that the examples are drawn from.
        instruction: First line of the prompt instead of the usual one; "" for none.
        chat: Whether the tokenizer's chat template goes around the prompt; auto does so where there is one.
        split: Of the data set; test unless given.
        form: What a phrasing is, if not told by the set: question, mask (a sentence with [MASK]) or opening (the
            beginning of a sentence that the answer ends).
        relations: Of PARAREL, such as P20. May be repeated; all unless given.
        max_new_tokens: Tokens of an answer at most; it ends with its line.
        batch_size: Questions at a time; changes speed and memory.
        seed: Decides the examples, the sample and the resampling behind the intervals, which hold 95 %.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8.
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        attention: auto, eager, sdpa, flex or flash.
        revision: Branch, tag or commit of a model on the hub.
    """
    from rich.progress import TaskID

    from anyorder.cli._console import PlainConsole
    from anyorder.cli.fuse._asking import load, question_progress
    from anyorder.errors import UserError
    from anyorder.evaluation.comparison import APPROACHES, compare
    from anyorder.evaluation.comparison_plot import draw
    from anyorder.evaluation.protocol import RUN_METHODS, Protocol
    from anyorder.utils.json_text import json_text

    for method in methods:
        if method not in RUN_METHODS:
            raise UserError(f"method is {method!r}: choose one of {', '.join(RUN_METHODS)}.")
    protocol = Protocol(
        dataset=dataset, split=split, form=form, relations=tuple(relations), num_paraphrases=num_paraphrases,
        indices=tuple(indices) or None, max_samples=max_samples, shots=shots, shots_from=shots_from,
        instruction=instruction, chat=chat, seed=seed, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    drawn = protocol.draw()  # before a large network is read, so that a mistake is told at once
    notes = PlainConsole(stderr=True)
    network, words = load(
        notes, model, tokenizer=tokenizer, dtype=dtype, device=device, attention=attention, revision=revision
    )
    questions, parts = drawn.questions, protocol.parts(drawn, words)
    with question_progress(notes) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        comparison = compare(
            network, words, questions, parts,
            {"model": model, "revision": revision, "dtype": dtype, **protocol.told()}, output,
            counts=counts,
            approaches=[approach for approach in APPROACHES if not methods or approach.method in methods],
            max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    table = comparison.markdown()
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    (output / "comparison.json").write_text(json_text(comparison.to_json(), indent=1) + "\n", encoding="utf-8")
    draw(comparison, output / "comparison.png")
    print(f"{comparison.questions} questions\n\n{table}")
    notes.print(f"in {output}: table.md, comparison.json, comparison.png", style="dim", soft_wrap=True)
