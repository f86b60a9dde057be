"""`anyorder fuse score`."""

from __future__ import annotations

from pathlib import Path


def command(results: str, *, lemmatize: bool = False, seed: int = 0) -> None:
    """Print how many answers of a results file are right.

    Args:
        results: Feather file of `anyorder fuse run`, or one with the same columns.
        lemmatize: Add the lemmas of predictions and answers to the file, and count an answer as right if the lemmas
            of one that counts are in it one after another.
        seed: Of the resampling behind the intervals, which hold 95 %.
    """
    from rich import box
    from rich.table import Table

    from anyorder.cli._console import PlainConsole
    from anyorder.evaluation.question_runs import read_results, with_lemmas, write_results
    from anyorder.evaluation.scoring import agreement, any_of, interval, mean_of, score

    file = Path(results)
    found = read_results(file)
    if lemmatize:
        found = with_lemmas(found)
        write_results(file, found)
    uuids = found.column("uuid")
    lemmatized = found.has_lemmas
    scores = score(
        found.column("answers"),
        found.column("prediction"),
        found.column("answer_lemmas") if lemmatized else (),
        found.column("predict_lemma") if lemmatized else (),
    )
    questions, several = len(set(uuids)), len(set(uuids)) < len(uuids)
    console = PlainConsole()
    console.print(
        f"{file}: {len(uuids)} answers to {questions} questions"
        + (f" of {found.total} that were asked for" if len(uuids) < found.total else ""),
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("%", "mean", *(["any of N"] if several else [])):
        table.add_column(column, justify="left" if column == "%" else "right")
    named = {"lemma": scores.lemma, "exact": scores.exact, "token F1": scores.f1, "containment": scores.containment}
    for name, values in named.items():
        if values:
            means = [mean_of(values, uuids), *([any_of(values, uuids)] if several else [])]
            table.add_row(name, *(str(interval(of_question, seed=seed)) for of_question in means))
    console.print(table)
    if several:
        same = interval(agreement(found.column("prediction"), uuids), seed=seed)
        console.print(f"two phrasings of a question agree: {same} %")
    if not lemmatized:
        PlainConsole(stderr=True).print(
            f"lemmas as well: anyorder fuse score {file} --lemmatize", style="dim", soft_wrap=True
        )
