"""`anyorder configs`, `pretrain` and `sft`: end to end on small real data, and mistakes before any step."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

import anyorder
from anyorder.cli import main
from anyorder.cli._progress import TrainingProgress
from anyorder.orders.names import objectives
from anyorder.training.settings import NEEDS, Run, objectives_with

SMALL = [
    "--steps=4", "--batch_size=2", "--length=32", "--width=32", "--layers=1", "--heads=2", "--vocab_size=300",
    "--log_every=2",
]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path, shared_data: Path) -> Path:
    """The beginning of a play."""
    file = tmp_path / "play.txt"
    file.write_text((shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:8000])
    return file


@pytest.fixture
def questions(tmp_path: Path, shared_data: Path) -> Path:
    """Problems and their solutions, as prompts and responses."""
    file = tmp_path / "problems.jsonl"
    with (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as lines:
        problems = [json.loads(next(lines)) for _ in range(12)]
    short = [{"prompt": problem["question"][:60], "response": problem["answer"][:40]} for problem in problems]
    file.write_text("\n".join(map(json.dumps, short)))
    return file


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a training that must fail: the last line, behind the one that says what runs if it had begun."""
    assert main(words) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert len(before) <= 1
    assert all(line.startswith(f"anyorder {words[0]}: network ") for line in before)
    assert last.startswith("error: ")
    return last.removeprefix("error: ")


def train(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize("objective", [*objectives(), "mixture"])
def test_every_objective_from_whole_texts_to_a_network(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    more = ["--shares=autoregressive=0.5", "--shares=masked-diffusion=0.5"] if objective == "mixture" else []
    more += ["--block_length=8"] if objective == "block-diffusion" else []
    folder = tmp_path / "out"
    train(
        "pretrain", "--data", text, "--validation", text, "--output", folder, "--objective", objective, *SMALL, *more,
        "--cache_dir", tmp_path / "cache",
    )  # fmt: skip
    said = capsys.readouterr().err
    assert f"objective {objective}" in said
    assert "bits_per_byte" in said
    model, tokenizer = anyorder.load(folder, device="cpu")
    modes = {
        "autoregressive": ["left-to-right"], "permutation": ["any-order"], "masked-diffusion": ["diffusion"],
        "block-diffusion": ["blocks"], "mixture": ["left-to-right", "diffusion"],
    }[objective]  # fmt: skip
    assert [mode.name for mode in model.config.modes] == modes
    assert tokenizer is not None
    masks = {mode.mask_token_id for mode in model.config.modes if mode.mask_token_id is not None}
    assert masks == ({tokenizer.mask_token_id} if {"diffusion", "blocks"} & set(modes) else set())
    log = json.loads((folder / "log.json").read_text())["log"]
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4]
    looks = {name for entry in log for name in entry if name.startswith("eval_")}
    assert len(looks) == 2 * len(modes)  # in nats and in bits
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("objective", objectives())
def test_answers_are_learnt_from_a_checkpoint(tmp_path: Path, text: Path, questions: Path, objective: str) -> None:
    cache = ("--cache_dir", tmp_path / "cache")
    train("pretrain", "--data", text, "--output", tmp_path / "first", *SMALL, "--length=128", *cache)
    network = tmp_path / "first"
    options = ["--steps=2", "--batch_size=2", "--length=128", "--log_every=1", *cache]
    train(
        "sft", "--data", questions, "--init", network, "--output", tmp_path / "out", "--objective", objective, *options
    )
    log = json.loads((tmp_path / "out" / "log.json").read_text())["log"]
    assert all(entry["loss"] > 0 for entry in log if "loss" in entry)


def test_a_resumed_command_ends_like_one_that_was_not_interrupted(tmp_path: Path, text: Path) -> None:
    options = [*SMALL, "--cache_dir", tmp_path / "cache", "--save_every=2", "--objective=masked-diffusion"]
    for name in ("whole", "cut"):
        train("pretrain", "--data", text, "--output", tmp_path / name, *options)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    (cut / "model.safetensors").unlink()
    shutil.rmtree(cut / "checkpoints" / "checkpoint-4")
    train("pretrain", "--data", text, "--output", cut, *options, "--resume")
    for file in ("model.safetensors", "log.json"):
        expected, found = (whole / file).read_bytes(), (cut / file).read_bytes()
        assert found == expected or file == "log.json"
    curves = [
        [entry["loss"] for entry in json.loads((folder / "log.json").read_text())["log"] if "loss" in entry]
        for folder in (whole, cut)
    ]
    assert curves[0] == curves[1]


def test_adapters_are_merged_into_the_network(tmp_path: Path, text: Path) -> None:
    cache = ("--cache_dir", tmp_path / "cache")
    train("pretrain", "--data", text, "--output", tmp_path / "first", *SMALL, *cache)
    network = tmp_path / "first"
    options = ["--steps=3", "--batch_size=2", "--length=32", "--lora_rank=2", "--log_every=1", "--save_every=1"]
    train(
        "pretrain", "--data", text, "--init", network, "--output", tmp_path / "out", *options, *cache,
        "--objective=permutation",
    )  # fmt: skip
    before, _ = anyorder.load(network, device="cpu")
    after, _ = anyorder.load(tmp_path / "out", device="cpu")
    assert after.query_rows is not None
    names = {name for name, weight in before.named_parameters() if not weight.equal(after.get_parameter(name))}
    assert names
    assert all("_proj." in name for name in names)


def test_streamed_data_and_the_template_that_was_taught(tmp_path: Path, text: Path, questions: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    train("pretrain", "--data", text, "--output", first, *SMALL, "--length=128", "--streaming")
    options = ["--steps=1", "--batch_size=2", "--length=128", "--cache_dir", tmp_path / "cache"]
    train("sft", "--data", questions, "--init", first, "--output", out, *options)
    _, tokenizer = anyorder.load(out, device="cpu")
    assert tokenizer is not None
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "why?"}], tokenize=False)
    assert "why?" in asked


# ------------------------------------------------------------------------------------------------ configurations


def test_sample_configurations_run_as_they_are(
    tmp_path: Path, text: Path, questions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train("configs", "samples", "--data", text)
    files = sorted(path.name for path in (tmp_path / "samples").iterdir())
    files.remove("shape-experts.json")
    assert files == sorted(
        ["pretrain-experts.yaml"]
        + [f"{command}-{name}.yaml" for command in ("pretrain", "sft") for name in [*objectives(), "mixture"]]
    )
    assert capsys.readouterr().out.count("anyorder ") == len(files)
    for name in files:
        page = (tmp_path / "samples" / name).read_text()
        fields: dict[str, Any] = yaml.safe_load(page)
        paths = {field: Path(fields[field]) for field in ("data", "output", "shape") if fields.get(field)}
        Run(**fields | paths)
        others = {field for field in NEEDS if fields["objective"] not in objectives_with(field)}
        assert not others & set(fields) or fields["objective"] == "mixture"
        assert max(map(len, page.splitlines())) <= 110
        assert page.count("#") > len(fields)
    train("pretrain", "--config", "samples/pretrain-permutation.yaml", *SMALL, "--save_every=2")
    assert (tmp_path / "trained-pretrain-permutation" / "config.json").is_file()
    options = ["--data", questions, "--steps=1", "--length=128", "--rope_scaling=yarn"]
    train("sft", "--config", "samples/sft-permutation.yaml", *options)
    assert (tmp_path / "trained-sft-permutation" / "config.json").is_file()


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps=0"], "steps is 0: give a number above 0."),
        (["--objective=autoregresive"], "--objective is 'autoregresive': did you mean autoregressive?"),
        (["--learning-rat=1"], "option --learning_rat=1 is unknown: did you mean --learning_rate?"),
        (
            ["--block_length=8"],
            "block_length is 8 for the objective 'autoregressive', which does not have it: leave it",
        ),
        (["--objective=mixture"], "shares is []: give a mixture two objectives, such as autoregressive=0.5."),
        (["--objective=mixture", "--shares=a=1"], "--shares is 'a': give one of autoregressive"),
        (["--mixture_by=step"], "mixture_by is 'step' without a mixture: leave it out, or choose mixture."),
        (["--shares=permutation=1"], "shares is ['permutation=1'] for no objective: choose mixture."),
        (["--init=x", "--width=8"], "--width is 8 beside --init, which decides it: leave out one of them."),
        (["--lora_rank=2"], "lora_rank is 2: an adapter needs init, what it adapts."),
        (["--resume"], "where no training began: leave out --resume."),
        (["--evaluate_every=2"], "evaluate_every is 2: give validation data to look at, or leave it out."),
        (["--init=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told_before_any_step(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    small = SMALL if not any("init" in option for option in options) else []
    words = ["pretrain", "--data", str(text), "--output", str(tmp_path / "out"), *small, *options]
    assert message in mistake(capsys, *words, "--cache_dir", str(tmp_path / "cache"))
    assert not (tmp_path / "out").exists()


def test_data_and_places_that_cannot_be_used(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": \n')
    rest = [*SMALL, "--cache_dir", str(tmp_path / "cache")]
    assert "bad.jsonl', line 2: " in mistake(capsys, "pretrain", "--data", str(bad), "--output", "out", *rest)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    message = mistake(capsys, "pretrain", "--data", str(text), "--output", str(full), *rest)
    assert "full' is not empty: give a new folder" in message
    train("pretrain", "--data", text, "--output", tmp_path / "run", *rest, "--save_every=2")
    capsys.readouterr()
    again = ["pretrain", "--data", str(text), "--output", str(tmp_path / "run"), *rest, "--save_every=2", "--resume"]
    message = mistake(capsys, *again, "--learning_rate=0.5")
    assert message.startswith("--learning_rate is 0.5, but the training in ")
    assert message.endswith("began with 0.001: give that, or a new output.")


# ------------------------------------------------------------------------------------------------ log files


def test_a_log_file_says_at_once_what_runs(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / ("a_folder_with_a_name_that_is_longer_than_a_line_of_a_terminal_" * 3)
    words = ["--data", text, "--validation", text, "--output", out, *SMALL, "--steps=20", "--log_every=1"]
    train("pretrain", *words, "--cache_dir", tmp_path / "cache")
    first, second, *lines = capsys.readouterr().err.splitlines()
    named = f"network from scratch, data {text}, objective autoregressive, output {out}"
    assert re.fullmatch(rf"anyorder pretrain: {re.escape(named)}, 20 steps, on \w+", first)
    pattern = r"0\.0 million weights, \d+ rows of data, objective autoregressive, 20 steps of 2 samples of at most 32 "
    assert re.fullmatch(pattern + r"tokens, learning rate 0\.001", second)
    steps = [line for line in lines if line.startswith("step ") and "loss" in line]
    assert re.fullmatch(r"step 1/20  loss \d\.\d\d", steps[0])
    assert all(re.fullmatch(r"step \d+/20  loss .*, \d+ tokens/s, 0:\d\d:\d\d left", line) for line in steps[1:])
    assert [int(line.split("/")[0].removeprefix("step ")) for line in steps] == [1, *range(2, 21, 2)]
    [look] = [line for line in lines if "validation" in line]
    assert re.fullmatch(r"step 20/20  validation: autoregressive \d\.\d\d", look)
    assert lines[-1] == f"network: {out}, curves: {out / 'loss.png'}"


def test_progress_comes_at_least_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a training whose tenth takes hours."""
    now = [0.0]
    monkeypatch.setattr("anyorder.cli._progress.time.perf_counter", lambda: now[0])
    page = io.StringIO()
    progress = TrainingProgress(Console(file=page, width=80), tokens_per_step=10)
    state = TrainerState(max_steps=100_000)
    arguments: Any = TrainingArguments(logging_steps=10)
    for step in range(1, 201):
        now[0] += 1
        state.global_step = step
        progress.on_step_end(arguments, state, TrainerControl())
        if step % 10 == 0:
            progress.on_log(arguments, state, TrainerControl(), logs={"loss": 2.0})
    lines = page.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == ["step 10", "step 70", "step 130", "step 190"]
    assert lines[1] == "step 70/100000  loss 2.00, 10 tokens/s, 1 day, 3:45:30 left"
