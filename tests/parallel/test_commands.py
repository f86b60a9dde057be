"""Commands in several processes, as `torchrun` starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import anyorder
from anyorder.cli import main
from anyorder.evaluation.question_runs import read_results
from anyorder.evaluation.questions import Question, to_json
from anyorder.model.llama import Llama
from tests.cli.conftest import folder
from tests.model.networks import network

__all__ = ["folder"]


def together(*words: object, number: int = 2, shell: str = "") -> subprocess.CompletedProcess[str]:
    """A command in so many processes, or a line of a shell, which knows the number $RANK of its process."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    command = ["--no-python", "sh", "-c", shell] if shell else ["-m", "anyorder", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    return subprocess.run(
        [*start, *command], capture_output=True, text=True, timeout=120, env=environment, check=False
    )  # fmt: skip


def messages(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error:")]


def test_mistakes_are_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    def mistake(*words: object) -> str:
        assert main(list(map(str, words))) == 2
        out, errors = capsys.readouterr()
        assert out == ""
        [message] = messages(errors)
        return message.removeprefix("error: ")

    generate = ("generate", folder, "Once", "--max_new_tokens", 2)
    assert mistake(*generate, "--tensor_parallel", 2) == (
        "--tensor_parallel is 2, but 1 process was started: start 2, or a multiple, with torchrun --nproc-per-node 2 "
        "-m anyorder ..."
    )
    assert mistake(*generate, "--tensor_parallel", 0) == (
        "--tensor_parallel is 0: give a number of processes, 1 for no split."
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert mistake(*generate) == (
        "2 processes were started without --tensor_parallel: give --tensor_parallel 2 to split the network over them, "
        "or 1 to share out the prompts."
    )
    assert mistake("generate", folder, "--tensor_parallel", 2) == (
        "the prompt comes from standard input, which several processes cannot share: give it as a word, or "
        "--prompts_file."
    )
    assert mistake("generate", folder, "--interactive", "--tensor_parallel", 2) == (
        "--interactive is given, but several processes were started: start one without torchrun."
    )
    assert mistake("info", folder) == (
        "2 processes were started, but anyorder info runs in one: start it without torchrun (generate, fuse run, "
        "evaluate likelihood, evaluate tasks, serve, pretrain, sft run in several)."
    )
    # A process that is alone in its mistake prints it itself.
    monkeypatch.setenv("RANK", "1")
    assert mistake("info", folder).startswith("process 1: 2 processes were started, but anyorder info runs in one")


@pytest.mark.slow
def test_a_split_network_writes_what_the_whole_one_does(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon\nA girl\nLily\n")
    words = ("generate", folder, "--prompts_file", prompts, "--max_new_tokens", 8, "--temperature", 0.9, "--json")
    alone = subprocess.run(
        [sys.executable, "-m", "anyorder", *map(str, words)], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    assert len(alone.splitlines()) == 3
    trace = tmp_path / "trace.json"
    split = together(*words, "--tensor_parallel", 2, "--trace", trace)
    assert split.returncode == 0, split.stderr
    assert without_log_probs(split.stdout) == without_log_probs(alone)
    assert trace.is_file()
    kept = tmp_path / "texts.jsonl"
    shared = together(*words, "--tensor_parallel", 1, "--batch_size", 1, "--output", kept)
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout == f"{kept}: 3 texts\n"
    assert without_log_probs(kept.read_text()) == without_log_probs(alone)


def without_log_probs(lines: str) -> list[str]:
    """Lines without what rounding changes."""
    return [line.partition('"log_prob"')[0] for line in lines.splitlines()]


@pytest.mark.slow
def test_processes_share_out_questions(folder: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "set.jsonl"
    questions = [Question(uuid=f"u{n}", phrasings=(f"is it {n}?", f"{n}?"), answers=("a girl",)) for n in range(5)]
    dataset.write_text("".join(to_json(question) + "\n" for question in questions))
    words = (
        "fuse", "run", "--model", folder, "--dataset", dataset, "--shots", 0, "--instruction", "",
        "--max_new_tokens", 3, "--num_paraphrases", 2, "--batch_size", 2,
    )  # fmt: skip
    assert main([*map(str, words), "--output", str(tmp_path / "one.feather")]) == 0
    shared = together(*words, "--output", tmp_path / "two.feather", "--tensor_parallel", 1)
    assert shared.returncode == 0, shared.stderr
    assert len(shared.stdout.splitlines()) == 1
    one, two = (read_results(tmp_path / name) for name in ("one.feather", "two.feather"))
    assert two.rows == one.rows


@pytest.mark.slow
def test_mistakes_end_all_processes(tmp_path: Path) -> None:
    """With one message, and exit code 2 of each: torchrun itself ends with 1."""

    def mistake(found: subprocess.CompletedProcess[str]) -> Sequence[str]:
        assert found.returncode == 1
        assert found.stdout == ""
        assert "exitcode  : 2" in found.stderr
        return messages(found.stderr)

    for layers, name in ((2, "0"), (3, "1")):
        kinds = network().config.layers[:1] * layers
        config = network().config.replace(num_hidden_layers=layers, layers=kinds, num_key_value_heads=1)
        anyorder.save(Llama(config), None, tmp_path / name)
    several = "--tensor_parallel 2 --max_new_tokens 2 --prompts_file"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt_token_ids": [1, 2]}\n')
    line = f"$PYTHON -m anyorder generate {tmp_path}/$RANK {several} {prompts}"
    [message] = mistake(together(shell=line))
    assert message == (
        "error: process 1 has a network whose num_hidden_layers is 3, and process 0 one whose num_hidden_layers is 2: "
        "give all processes the same checkpoint."
    )
    [message] = mistake(together(shell=line.replace("$RANK", "0")))
    assert message == (
        "error: --tensor_parallel is 2, which does not divide what is split (1 key-value heads, 24 inner features): "
        "give one of 1."
    )
    [message] = mistake(together(shell=line.replace("$RANK", "$(expr $RANK + 1)")))
    assert message == f"error: process 1: checkpoint '{tmp_path}/2' is no folder or file here: check the path."
