"""`anyorder evaluate tasks`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'anyorder[eval]'")

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from tests.cli.test_main import mistake

TASK = """\
task: next_word
dataset_path: json
dataset_kwargs:
  cache_dir: {path}/cache
  data_files:
    test: {path}/questions.jsonl
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
"""


@pytest.fixture(scope="module")
def versatile(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `folder`, said to write in every way, and a task."""
    model, tokenizer = anyorder.load(folder)
    path = tmp_path_factory.mktemp("versatile")
    question = {"text": "Once upon a", "choices": ["time there was a", "girl named Lily"]}
    (path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (path / "next_word.yaml").write_text(TASK.format(path=path))
    anyorder.save(adapt(model, (LEFT_TO_RIGHT, ANY_ORDER, diffusion(250))), tokenizer, path / "tiny")
    return path


def test_tasks_are_scored_in_an_order(versatile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    words = ["evaluate", "tasks", str(versatile / "tiny"), "--tasks", "next_word", "--include_path", str(versatile)]
    options = ["--order", "diffusion", "--mask_samples", "32", "--output", str(file), "--log_samples"]
    assert main([*words, *options]) == 0
    printed = capsys.readouterr()
    header, *rows = printed.out.splitlines()
    assert header.split() == ["task", "metric", "value", "±", "questions", "±", "masks"]
    results = json.loads(file.read_text())
    measures = results["results"]["next_word"]
    assert rows[0].split()[:3] == ["next_word", "acc", f"{measures['acc,none']:.4f}"]
    assert rows[0].split()[-1] == f"{measures['acc_bound_stderr,none']:.4f}"
    assert "log-probabilities are bounds" in printed.err
    assert results["settings"]["lm"]["mode"] == "diffusion"
    assert results["settings"]["model"] == str(versatile / "tiny")
    assert len(results["samples"]["next_word"]) == 1

    assert "results.json' is there already" in mistake(capsys, *words, *options)
    assert main([*words, "--order", "groups:2", "--output", str(file), "--force", "--max_samples", "1"]) == 0
    printed = capsys.readouterr()
    assert "bounds" not in printed.err
    results = json.loads(file.read_text())
    assert results["settings"]["max_samples"] == 1
    assert "samples" not in results


def test_mistakes(versatile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", "tasks", str(versatile / "tiny"), "--tasks", "next_word", "--include_path", str(versatile))
    assert mistake(capsys, *words, "--system", "Be brief.").startswith("--system is 'Be brief.' without --chat, whose")
    assert mistake(capsys, *words, "--log_samples").startswith("--log_samples is given without output, the file that")
    assert "--mask_samples is 0: give a whole number above 0" in mistake(capsys, *words, "--mask_samples", "0")
    assert "--steps is given with --order 'random'" in mistake(capsys, *words, "--order", "random", "--steps", "4")
    assert "the name is --shots" in mistake(capsys, *words, "--num_fewshot", "5")
    assert "the name is --mask_samples" in mistake(capsys, *words, "--mc_num", "128")
