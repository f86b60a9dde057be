"""Many commands in two processes that are started once: evaluations, and mistakes that end all of them."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from pathlib import Path

import pytest

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.errors import UserError
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.parallel import processes
from anyorder.training import Run, Training
from anyorder.training.loop import check_machine
from tests.cli.conftest import folder
from tests.parallel.test_commands import messages, together

__all__ = ["folder"]

MANY = """
import json, os, sys
from pathlib import Path
from anyorder.cli import main
for number, words in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # so that each has a message of its own
    code = main([word.replace("$RANK", os.environ["RANK"]) for word in words])
    (Path(sys.argv[2]) / f"{number}-{os.environ['RANK']}").write_text(str(code))
"""
"""Runs commands from a file, and writes the exit code of each in each process into a folder."""

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


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> Path:
    """A network that writes in several modes, texts and a task."""
    model, tokenizer = anyorder.load(folder)
    anyorder.save(adapt(model, (LEFT_TO_RIGHT, ANY_ORDER, diffusion(250))), tokenizer, tmp_path / "network")
    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl named Lily. " * 8)
    questions = [{"text": text, "choices": ["time there was a", "girl named Lily"]} for text in ("Once", "A", "There")]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "next_word.yaml").write_text(TASK.format(path=tmp_path))
    return tmp_path


@pytest.mark.slow
def test_evaluations_and_mistakes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'anyorder[eval]'")
    network, text, codes = place / "network", place / "text.txt", place / "codes"
    codes.mkdir()
    likelihood = ["evaluate", "likelihood", network, text, "--length", 8, "--texts", 5, "--draws", 2, "--json",
                  "--batch_size", 2, "--orders", "random", "--orders", "diffusion"]  # fmt: skip
    tasks = ["evaluate", "tasks", network, "--tasks", "next_word", "--include_path", place, "--batch_size", 1]
    pretrain = ["pretrain", "--data", text, "--length", 8, "--width", 12, "--layers", 1, "--heads", 3, "--vocab_size",
                290, "--cache_dir", place / "cache", "--output", place / "trained"]  # fmt: skip
    good = [
        [*likelihood, "--tensor_parallel", 1], [*likelihood, "--tensor_parallel", 2],
        [*tasks, "--output", place / "two.json", "--tensor_parallel", 1],
    ]  # fmt: skip
    bad = {
        "--use_cache is given, but several processes were started, which keep no responses: leave it out, or start one "
        "without torchrun.": [*tasks, "--use_cache", place / "responses", "--tensor_parallel", 1],
        "--tensor_parallel is 2, which does not divide what is split (3 key-value heads, 32 inner features): give one "
        "of 1.": [*pretrain, "--steps", 2, "--tensor_parallel", 2],
        "--seed is 1 in process 1, and 0 in process 0: give all processes the same settings.": [
            *pretrain, "--seed", "$RANK"
        ],
        "--tensor_parallel is 1, but requests come to one network: give 2, which splits it over all processes.": [
            "serve", network, "--port", 0, "--tensor_parallel", 1
        ],
    }  # fmt: skip
    commands = [[str(word) for word in words] for words in (*good, *bad.values())]
    (place / "commands.json").write_text(json.dumps(commands))
    (place / "many.py").write_text(MANY)
    found = together(shell=f"$PYTHON {place}/many.py {place}/commands.json {codes}")
    assert found.returncode == 0, found.stderr
    assert messages(found.stderr) == [f"error: {message}" for message in bad], found.stderr
    expected = [0] * len(good) + [2] * len(bad)
    for number, code in enumerate(expected):
        assert {(codes / f"{number}-{rank}").read_text() for rank in (0, 1)} == {str(code)}, commands[number]
    assert not (place / "trained").exists()
    assert main([*map(str, likelihood)]) == 0
    alone = list(map(json.loads, capsys.readouterr().out.splitlines()))
    printed = list(map(json.loads, (line for line in found.stdout.splitlines() if line.startswith("{"))))
    for records in (printed[:2], printed[2:]):
        assert [record["name"] for record in records] == [record["name"] for record in alone]
        for record, one in zip(records, alone, strict=True):
            assert record["texts"] == pytest.approx(one["texts"], rel=1e-5)
    assert main([*map(str, tasks), "--output", str(place / "one.json")]) == 0
    one, two = (json.loads((place / name).read_text())["results"] for name in ("one.json", "two.json"))
    assert two == one


def test_a_port_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(processes, "REPORT_TIMEOUT", timedelta(seconds=0.1))
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        assert main(["generate", str(folder), "Once", "--tensor_parallel", "2"]) == 2
    [message] = messages(capsys.readouterr().err)
    assert message.startswith(f"error: the processes cannot reach each other at 127.0.0.1:{port} (")
    assert message.endswith("): start them with torchrun --standalone, which takes a free port.")


def test_processes_that_serve_split_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["serve", str(folder), "--port", "0"]) == 2
    [message] = messages(capsys.readouterr().err)
    assert message == (
        "error: 2 processes were started without --tensor_parallel: give --tensor_parallel 2, which splits the network "
        "over them."
    )


def test_networks_are_sharded_by_fsdp_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"^accelerate launch was given --use_fsdp, .*: give fsdp instead\.$"):
        check_machine(Training(steps=1))


def test_networks_in_parts_have_no_loss_scaling_and_no_adapters() -> None:
    given = {"data": Path("text.txt"), "output": Path("out"), "init": "network"}
    for parts in ({"fsdp": True}, {"tensor_parallel": 2}):
        with pytest.raises(UserError, match=r"^precision is 'float16': the loss of a network in parts is not scaled"):
            Run(**given, **parts, precision="float16")
        with pytest.raises(UserError, match=r"^lora_rank is 4: adapters are of a whole network: no fsdp or tensor_par"):
            Run(**given, **parts, lora_rank=4)
    with pytest.raises(UserError, match=r"^tensor_parallel is 0: give a number above 0\.$"):
        Run(**given, tensor_parallel=0)
