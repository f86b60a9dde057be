"""`anyorder fuse run`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from anyorder.utils.annotations import Listed


def command(
    *,
    model: str,
    dataset: str,
    output: Path = Path("results.feather"),
    method: str = "attention",
    positions: str = "shared",
    correction: str = "1/N",
    weights: str | None = None,
    keep: int | None = None,
    num_paraphrases: int | None = None,
    indices: list[int] = [],  # noqa: B006 (never changed)
    max_samples: int | None = None,
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
    """Answer the questions of a data set, each from several phrasings, into a results file.

    Interrupted, the same command goes on where it was.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name).
        dataset: Questions: a .jsonl file, the folder of PARAREL or WebQuestions, a .parquet file, a folder of
            datasets, or the id of a data set on the hub.
        output: New feather file with the columns uuid, paraphrases, answers, prediction, generation.
        method: single (each phrasing by itself), concatenation, or a way to fuse: attention, logit-mean,
            probability-mean, max, lowest-entropy, contrast, attention+logit-mean, vote.
        positions: Of the method attention: shared, running, right, spread.
        correction: Of the method attention: 1/N, none, length, or ape:TEMPERATURE,SCALE.
        weights: What the phrasings count by: confidence, or likelihood; all the same unless given.
        keep: Use only this many phrasings of the highest weights.
        num_paraphrases: Take the first so many phrasings of each question; 5 unless indices are given.
        indices: Which phrasings, counted from 0, such as 0,1,2.
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
        seed: Decides the examples and the sample.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8.
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        attention: auto, eager, sdpa, flex or flash.
        revision: Branch, tag or commit of a model on the hub.
    """
    from dataclasses import asdict

    from anyorder.cli._console import PlainConsole
    from anyorder.cli.fuse._asking import load, question_progress
    from anyorder.evaluation.protocol import Approach, Protocol, asker, one_by_one
    from anyorder.evaluation.question_runs import run_questions

    approach = Approach(method=method, positions=positions, correction=correction, weights=weights, keep=keep)
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
    asked = one_by_one(questions) if method == "single" else questions
    ask = asker(network, words, parts, approach, max_new_tokens=max_new_tokens)
    settings = {"model": model, "revision": revision, "dtype": dtype, **asdict(approach), **protocol.told()}
    with question_progress(notes) as bar:
        task = bar.add_task(method, total=len(asked))
        results = run_questions(
            asked, parts, ask, settings, output, batch_size=batch_size,
            on_progress=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    print(f"{output}: {len(results.rows)} answers in {results.seconds:.1f} s, {results.passes} forward passes")
    notes.print(f"next: anyorder fuse score {output} --lemmatize", style="dim", soft_wrap=True)
