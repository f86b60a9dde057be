"""`anyorder data paraphrase`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def command(
    model: str,
    dataset: str,
    *,
    output: Path,
    count: int = 5,
    temperature: float = 1.5,
    top_p: float = 0.9,
    max_new_tokens: int = 30,
    seed: int = 0,
    max_samples: int | None = None,
    split: str | None = None,
    form: Literal["question", "mask"] | None = None,
    batch_size: int = 16,
    tokenizer: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
) -> None:
    """Let a network ask each question of a data set in other words, for `anyorder fuse run`.

    Interrupted, the same command goes on where it was.

    Args:
        model: Hugging Face or Meta folder, llama2.c file, or hub id (org/name).
        dataset: Questions: a .jsonl file, the folder of WebQuestions, a .parquet file, a folder of datasets, or the id
            of a data set on the hub.
        output: New .jsonl file with uuid, phrasings (the first as it was) and answers in each line.
        count: Phrasings to write for each question, 5 at most, each after examples of its own.
        temperature: Tokens are drawn; the higher, the more the phrasings differ.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        max_new_tokens: Tokens of a phrasing at most; it ends with its line.
        seed: With the number of the question, decides what is drawn; with max_samples, also the sample.
        max_samples: Take only so many questions, drawn with the seed.
        split: Of the data set; test unless given.
        form: What a phrasing is, if the set does not say: question, or mask (a sentence with [MASK]).
        batch_size: Phrasings written at a time; changes speed and memory, not what is written.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8.
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        attention: auto, eager, sdpa, flex or flash.
        revision: Branch, tag or commit of a model on the hub.
    """
    from anyorder.cli._console import PlainConsole
    from anyorder.cli.fuse._asking import load, question_progress
    from anyorder.evaluation.paraphrasing import paraphrase
    from anyorder.evaluation.question_sets import read_questions
    from anyorder.utils.files import check_place

    check_place(output, folder=False)  # this and the set are looked at before a large network is read
    found = read_questions(dataset, split=split, form=form).sample(max_samples, seed)
    notes = PlainConsole(stderr=True)
    network, words = load(
        notes, model, tokenizer=tokenizer, dtype=dtype, device=device, attention=attention, revision=revision
    )
    with question_progress(notes) as bar:
        task = bar.add_task("questions", total=len(found.questions))
        written = paraphrase(
            network, words, found, output, count=count, temperature=temperature, top_p=top_p,
            max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size,
            settings={"model": model, "revision": revision, "dtype": dtype},
            on_progress=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    before = sum(len(question.phrasings) for question in found.questions)
    new = sum(len(question.phrasings) for question in written) - before
    print(f"{output}: {new} new phrasings of {len(written)} questions, {count * len(written) - new} missing")
