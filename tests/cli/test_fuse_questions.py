"""`anyorder fuse run | score | compare`: from a file of questions to results, scores, a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

import anyorder
from anyorder.cli import main
from anyorder.evaluation.question_runs import COLUMNS, read_results
from anyorder.evaluation.questions import Question, to_json
from tests.cli.test_main import mistake

LITTLE = ["--shots", "0", "--instruction", "", "--max-new-tokens", "3"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    questions = [
        Question(uuid=f"u{number}", phrasings=(f"is it {number}?", f"{number}?", f"or {number}?"), answers=("a girl",))
        for number in range(5)
    ]
    file = tmp_path / "set.jsonl"
    file.write_text("".join(to_json(question) + "\n" for question in questions))
    return file


def run(capsys: pytest.CaptureFixture[str], folder: Path, dataset: Path, output: Path, *words: str) -> str:
    command = ["fuse", "run", "--model", str(folder), "--dataset", str(dataset), "--output", str(output)]
    assert main([*command, *LITTLE, *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_run_writes_what_fuse_answers(capsys, folder: Path, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.feather"
    out = run(capsys, folder, dataset, file, "--num-paraphrases", "3", "--indices", "2,0", "--batch-size", "2")
    assert out.startswith(f"{file}: 5 answers in ")
    table = pandas.read_feather(file)
    assert tuple(table.columns) == COLUMNS
    assert list(table["uuid"]) == ["u0", "u1", "u2", "u3", "u4"]
    assert list(table["paraphrases"][1]) == ["or 1?", "is it 1?"]
    model, tokenizer = anyorder.load(folder)
    segments = [[f"Q: or {number}?\n", f"Q: is it {number}?\n"] for number in range(5)]
    texts = anyorder.fuse(model, tokenizer, segments, suffix="A:", max_new_tokens=3, stop="\n").text
    assert list(table["generation"]) == texts
    assert list(table["prediction"]) == [text.strip().split("\n")[0].strip() for text in texts]


@pytest.mark.parametrize(("method", "rows"), [("single", 10), ("concatenation", 5), ("logit-mean", 5), ("vote", 5)])
def test_other_methods(capsys, folder: Path, dataset: Path, tmp_path: Path, method: str, rows: int) -> None:
    file = tmp_path / "r.feather"
    run(capsys, folder, dataset, file, "--num-paraphrases", "2", "--method", method)
    results = read_results(file)
    assert len(results.rows) == rows
    assert results.settings["method"] == method
    assert {len(paraphrases) for paraphrases in results.column("paraphrases")} == {1 if method == "single" else 2}


def test_a_run_again_changes_nothing(capsys, folder: Path, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.feather"
    first = run(capsys, folder, dataset, file, "--num-paraphrases", "2")
    before = file.read_bytes()
    assert run(capsys, folder, dataset, file, "--num-paraphrases", "2") == first
    words = ["fuse", "run", "--model", str(folder), "--dataset", str(dataset), "--output", str(file), *LITTLE]
    refused = mistake(capsys, *words, "--num-paraphrases", "2", "--method", "max")
    assert refused == (
        f"{str(file)!r} holds 5 answers of a run with method 'attention', not 'max': give another output, or the "
        "settings of that run."
    )
    assert file.read_bytes() == before


def test_scores(capsys, tmp_path: Path) -> None:
    file = tmp_path / "r.feather"
    pandas.DataFrame({
        "uuid": ["a", "a", "b", "b"],
        "paraphrases": [["q"], ["r"], ["s"], ["t"]],
        "answers": [["car"], ["car"], ["Rome", "Roma"], ["Rome", "Roma"]],
        "prediction": ["Cars", "a car", "Milan", "milan!"],
        "generation": ["Cars\n", "a car", "Milan", "milan!"],
    }).to_feather(file)  # fmt: skip
    assert main(["fuse", "score", str(file)]) == 0
    captured = capsys.readouterr()
    assert f"{file}: 4 answers to 2 questions" in captured.out
    assert "lemma" not in captured.out
    assert "anyorder fuse score" in captured.err
    assert main(["fuse", "score", str(file), "--lemmatize"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["lemma"][0] == "50.0"
    assert lines["lemma"][3] == "50.0"
    assert lines["exact"][0] == "25.0"
    assert lines["exact"][3] == "50.0"
    assert "agree: 50.0 [" in " ".join(lines["two"])
    table = pandas.read_feather(file)
    assert [list(words) for words in table["predict_lemma"]] == [["car"], ["a", "car"], ["milan"], ["milan", "!"]]
    assert main(["fuse", "score", str(file)]) == 0
    assert "lemma" in capsys.readouterr().out  # they are in the file now


def test_a_comparison(capsys, folder: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "c"
    words = [
        "fuse", "compare", "--model", str(folder), "--dataset", str(dataset), "--output", str(output), *LITTLE,
        "--num-paraphrases", "3", "--counts", "1,3", "--methods", "attention", "--methods", "logit-mean",
    ]  # fmt: skip
    assert main(words) == 0
    captured = capsys.readouterr()
    table = (output / "table.md").read_text()
    assert captured.out == f"5 questions\n\n{table}"
    assert "| logit-mean | " in table
    assert table.count("| attention, ") == 9
    assert "vote" not in table
    lines = json.loads((output / "comparison.json").read_text())["lines"]
    assert {line["phrasings"] for line in lines} == {1, 3}
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(output.glob("*.feather"))) == 12  # single, and at 3 nine of attention and one of logits; ape at 1


def test_mistakes(capsys, folder: Path, dataset: Path, tmp_path: Path) -> None:
    words = ["fuse", "run", "--model", str(folder), "--dataset", str(dataset), "--output", str(tmp_path / "r.feather")]
    assert mistake(capsys, *words, "--indices", "0,x") == (
        "--indices has 'x': give whole numbers, with commas between."
    )
    assert "has 10 phrasings (the most is 3): ask for fewer" in mistake(capsys, *words, "--indices", "9")
    assert "no question of" in mistake(capsys, *words)  # five phrasings unless given
    two = [*words, *LITTLE, "--num-paraphrases", "2"]
    assert mistake(capsys, *two, "--method", "mean").startswith(
        "--method is 'mean': choose one of single, concatenation"
    )
    assert mistake(capsys, *two, "--positions", "left").startswith("--positions is 'left': choose one of shared")
    assert mistake(capsys, *two, "--correction", "2/N").startswith("--correction is '2/N': choose one of 1/N")
    assert "cannot be read" in mistake(capsys, *two, "--dataset", str(tmp_path / "nothing"))
    long = mistake(capsys, *two, "--instruction", "word " * 90)
    assert long.startswith("in the batch of 'u0' to 'u4': question 0 reaches over")
    assert "shorten the prefix by" in long
    missing = tmp_path / "missing.feather"
    pandas.DataFrame({"uuid": ["a"]}).to_feather(missing)
    assert "has no column 'paraphrases', " in mistake(capsys, "fuse", "score", str(missing))
    assert "is not there" in mistake(capsys, "fuse", "score", str(tmp_path / "nothing"))
    assert mistake(capsys, "fuse", "compare", *words[2:], "--methods", "mean").startswith("--methods is 'mean'")
    assert not (tmp_path / "r.feather").exists()
