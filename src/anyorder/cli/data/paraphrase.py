"""`anyorder data paraphrase`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyorder.cli._options import ModelOptions, OptionGroup


@dataclass(frozen=True, kw_only=True)
class PhrasingOptions(OptionGroup):
    """What is written for each question.

    Attributes:
        count: Phrasings to write for each question, 5 at most, each after examples of its own.
        temperature: Tokens are drawn; the higher, the more the phrasings differ.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        max_new_tokens: Tokens of a phrasing at most; it ends with its line.
        seed: With the number of the question, decides what is drawn; with max_samples, also the sample.
    """

    count: int = 5
    temperature: float = 1.5
    top_p: float = 0.9
    max_new_tokens: int = 30
    seed: int = 0


def command(
    model: str,
    dataset: str,
    *,
    output: Path,
    phrasing: PhrasingOptions,
    max_samples: int | None = None,
    split: str | None = None,
    form: Literal["question", "mask"] | None = None,
    batch_size: int = 16,
    loading: ModelOptions,
) -> None:
    """Let a network ask each question of a data set in other words, for `anyorder fuse run`.

    Interrupted, the same command resumes.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        dataset: Questions: a .jsonl file, the folder of WebQuestions, a .parquet file, a folder of datasets, or the id
            of a data set on the hub.
        output: New .jsonl file with uuid, phrasings (the first as it was) and answers in each line.
        phrasing: what is written for each question.
        max_samples: Take only so many questions, drawn with the seed.
        split: Of the data set; test unless given.
        form: What a phrasing is, if the data set does not say: question, or mask (a sentence with [MASK]).
        batch_size: Phrasings written at a time; changes speed and memory, not what is written.
        loading: how the model is read.
    """
    from dataclasses import asdict

    from anyorder.cli._console import PlainConsole
    from anyorder.cli.fuse._asking import load, question_progress
    from anyorder.evaluation.paraphrasing import paraphrase
    from anyorder.evaluation.question_sets import read_questions
    from anyorder.utils.files import check_place

    check_place(output, folder=False)  # this and the set are checked before a large network is read
    found = read_questions(dataset, split=split, form=form).sample(max_samples, phrasing.seed)
    notes = PlainConsole(stderr=True)
    loaded, tokenizer = load(notes, model, **asdict(loading))
    with question_progress(notes) as bar:
        task = bar.add_task("questions", total=len(found.questions))
        written = paraphrase(
            loaded,
            tokenizer,
            found,
            output,
            batch_size=batch_size,
            settings={"model": model, "revision": loading.revision, "dtype": loading.dtype},
            on_progress=lambda done: bar.update(task, completed=done),
            **asdict(phrasing),
        )
    before = sum(len(question.phrasings) for question in found.questions)
    new = sum(len(question.phrasings) for question in written) - before
    print(f"{output}: {new} new phrasings of {len(written)} questions, {phrasing.count * len(written) - new} missing")
