"""`anyorder fuse run`."""

from __future__ import annotations

from pathlib import Path

from anyorder.cli._options import ModelOptions, ProcessOptions
from anyorder.cli.fuse._options import MethodOptions, QuestionOptions


def command(
    *,
    model: str,
    output: Path = Path("results.feather"),
    answering: MethodOptions,
    asking: QuestionOptions,
    batch_size: int = 16,
    loading: ModelOptions,
    splitting: ProcessOptions,
) -> None:
    """Answer the questions of a data set, each from several phrasings, into a results file.

    Interrupted, the same command resumes.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        output: New feather file with the columns uuid, paraphrases, answers, prediction, generation.
        answering: how the questions are answered.
        asking: which questions are asked, and how.
        batch_size: Questions at a time, of each process that has some; changes speed and memory.
        loading: how the model is read.
        splitting: what several processes do together.
    """
    from contextlib import nullcontext
    from dataclasses import asdict

    from anyorder.cli._console import PlainConsole
    from anyorder.cli.fuse._asking import load, question_progress
    from anyorder.evaluation.protocol import asker, one_by_one
    from anyorder.evaluation.question_runs import run_questions
    from anyorder.evaluation.shared_questions import follow, leading

    method, protocol = answering.to_method(), asking.to_protocol()
    drawn = protocol.draw()  # before a large model is read, so that mistakes are found at once
    notes = PlainConsole(stderr=True)
    processes = splitting.begin(loading.device)
    loaded, tokenizer = load(notes, model, **asdict(loading), processes=processes)
    parts = protocol.parts(drawn, tokenizer)
    questions = one_by_one(drawn.questions) if method.name == "single" else drawn.questions
    ask = asker(loaded, tokenizer, parts, method, max_new_tokens=protocol.max_new_tokens)
    settings = {
        "model": model, "revision": loading.revision, "dtype": loading.dtype, **method.settings(), **protocol.settings()
    }  # fmt: skip
    if processes is not None and not processes.is_first:
        follow(ask, processes)
        return
    alone = nullcontext(ask) if processes is None else leading(ask, processes)
    with question_progress(notes) as bar, alone as answer:
        task = bar.add_task(method.name, total=len(questions))
        results = run_questions(
            questions, parts, answer, settings, output,
            batch_size=batch_size * (1 if processes is None else processes.mesh["data"].size()),
            on_progress=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    print(f"{output}: {len(results.rows)} answers in {results.seconds:.1f} s, {results.passes} forward passes")
    notes.print(f"next: anyorder fuse score {output} --lemmatize", style="dim", soft_wrap=True)
