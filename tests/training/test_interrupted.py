"""Trainings that are killed, interrupted or run out of room, and what goes on from what they left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

import anyorder
from anyorder.errors import UserError
from anyorder.training import runs
from anyorder.training.engine import whole_checkpoints
from anyorder.training.interruption import HANDLED, Interrupted
from anyorder.training.settings import Run
from anyorder.utils.files import BeingWrittenError, claimed
from tests.training.test_engine import curve, trained, weights

TEXT = "".join(f"The {first} {second} sat by the {third}.\n" for first in ("old", "grey", "small", "quick")
               for second in ("cat", "dog", "hen", "fox") for third in ("door", "well", "tree", "hill"))  # fmt: skip
"""1,800 bytes."""


class AtStep(TrainerCallback):
    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step + 1 == self.step:
            self.act()


def summary(log: list[dict[str, float]]) -> float:
    return log[-1]["train_loss"]


def fail() -> None:
    raise RuntimeError("a line cannot be read")


# ------------------------------------------------------------------------------------------------ signals


@pytest.fixture
def default_handlers() -> Iterator[None]:
    """Python's own, even where the tests run in the background of a shell, which ignores SIGINT for them."""
    before = {number: signal.signal(number, handler) for number, handler in HANDLED.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("save_every", [0, 4])
def test_a_signal_leaves_a_checkpoint_and_the_rest_is_the_same(tmp_path: Path, number: int, save_every: int) -> None:
    """Though the log has an entry every 3 steps, and the checkpoint comes between two."""
    options: dict[str, Any] = {"steps": 8, "log_every": 3, "accumulation": 2}
    whole, log = trained(**options)
    options |= {"folder": tmp_path / "cut", "save_every": save_every}
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised:
        trained(**options, callbacks=[AtStep(5, lambda: os.kill(os.getpid(), number))])
    assert raised.value.signal == number
    assert signal.getsignal(number) == before
    assert whole_checkpoints(tmp_path / "cut")[-1].name == "checkpoint-5"
    resumed, log_of_resumed = trained(**options, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert curve(log_of_resumed) == curve(log)
    assert summary(log_of_resumed) == summary(log)
    assert not (tmp_path / "cut" / ".partial").exists()


def test_an_exception_leaves_the_last_whole_step(tmp_path: Path) -> None:
    whole, log = trained(steps=6, log_every=4)
    options: dict[str, Any] = {"steps": 6, "log_every": 4, "folder": tmp_path, "save_every": 500}
    with pytest.raises(RuntimeError, match="cannot be read"):
        trained(**options, callbacks=[AtStep(4, fail)])
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["checkpoint-3"]
    resumed, log_of_resumed = trained(**options, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert (curve(log_of_resumed), summary(log_of_resumed)) == (curve(log), summary(log))


def test_the_loss_in_the_summary_is_that_of_all_steps(tmp_path: Path) -> None:
    _, log = trained(steps=5, log_every=1, folder=tmp_path, save_every=2)
    mean = sum(loss for _, loss in curve(log)) / 5
    assert summary(log) == pytest.approx(mean, rel=1e-6)
    _, again = trained(steps=5, log_every=1, folder=tmp_path, save_every=2, resume=True)  # after its end
    assert summary(again) == summary(log)
    kept = json.loads((tmp_path / "checkpoint-5" / "progress.json").read_text())
    assert again[-1]["train_runtime"] >= kept["seconds"] > 0
    assert curve(again) == curve(log)


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    message = r"checkpoints' is being written by another process: wait until that has finished, or give another place"
    folder = tmp_path / "checkpoints"

    def second() -> None:
        with pytest.raises(BeingWrittenError, match=message):
            trained(folder=folder)

    trained(steps=2, folder=folder, callbacks=[AtStep(1, second)])


def test_damaged_checkpoints(tmp_path: Path) -> None:
    trained(steps=2, folder=tmp_path, save_every=1)
    state = "optimizer/shard-00001-model-00001-of-00001.safetensors"
    for name in (state, "model.safetensors", "trainer_state.json", "progress.json"):
        file = tmp_path / "checkpoint-2" / name
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 8]) + content[-1:])
        reason = rf"checkpoint-2' is damaged \({name} has changed\): delete it to go on from the one before\.$"
        with pytest.raises(UserError, match=reason):
            trained(steps=2, folder=tmp_path, save_every=1, resume=True)
        file.write_bytes(content)
    stray = tmp_path / "checkpoint-2" / "optimizer" / "shard-00002-model-00001-of-00001.safetensors"
    shutil.copy(tmp_path / "checkpoint-1" / state, stray)
    reason = rf"checkpoint-2' has files that are not of its training, such as optimizer/{stray.name}: delete them\.$"
    with pytest.raises(UserError, match=reason):
        trained(steps=2, folder=tmp_path, save_every=1, resume=True)
    stray.unlink()
    trained(steps=2, folder=tmp_path, save_every=1, resume=True)


# ------------------------------------------------------------------------------------------------ whole runs


def settings(folder: Path, **options: Any) -> Run:
    """Of a tiny training on `TEXT`."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT)
    small: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "vocab_size": 290} if "init" not in options else {}
    given = {"steps": 4, "batch_size": 2, "length": 16, "log_every": 1, "output": folder / "out"} | small | options
    return Run(data=folder / "text.txt", cache_dir=folder / "cache", **given)


def network_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_adapters_begin_the_same_in_every_process(tmp_path: Path) -> None:
    runs.run(settings(tmp_path, output=tmp_path / "base", steps=1))
    init = str(tmp_path / "base")
    found = []
    for name, draws in (("one", 1), ("two", 2), ("three", 3)):
        torch.manual_seed(draws)  # as another process has it
        chosen = settings(tmp_path, init=init, lora_rank=2, output=tmp_path / name, objective="permutation")
        if name == "three":
            with pytest.raises(Interrupted):
                runs.run(chosen, callbacks=[AtStep(2, lambda: os.kill(os.getpid(), signal.SIGTERM))])
            torch.manual_seed(4)
            chosen = settings(
                tmp_path, init=init, lora_rank=2, output=tmp_path / name, objective="permutation", resume=True
            )
        log = runs.run(chosen)
        found.append((network_of(tmp_path / name), curve(log), summary(log)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_nothing_was_trained_counts_as_empty(tmp_path: Path, resume: bool) -> None:
    with pytest.raises(RuntimeError):
        runs.run(settings(tmp_path), callbacks=[AtStep(1, fail)])
    out = tmp_path / "out"
    assert (out / "settings.json").is_file()
    (out / "checkpoints" / ".partial" / "checkpoint-1").mkdir(parents=True)  # as SIGKILL leaves it
    runs.run(settings(tmp_path, resume=resume))
    assert (out / "config.json").is_file()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-4"]
    with pytest.raises(UserError, match="is not empty"):
        runs.run(settings(tmp_path))


def test_files_of_others_are_not_taken_for_a_training(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("settings.json", "mine.txt"):
        (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(UserError, match="is not empty"):
        runs.run(chosen)
    assert (tmp_path / "out" / "mine.txt").is_file()


def test_two_runs_with_one_output(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"), pytest.raises(BeingWrittenError, match=r"out' is being written by another process"):
        runs.run(settings(tmp_path))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ full disks


def test_room_is_checked_before_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 0, 9))
    message = (
        r"out' is on a disk with 9 bytes left, but the training writes checkpoints of \d+ KB and a network of \d+ KB"
    )
    with pytest.raises(UserError, match=message):
        runs.run(settings(tmp_path))
    assert not (tmp_path / "out").exists()


def refuse(name: str, monkeypatch: pytest.MonkeyPatch, *, everywhere: bool = False) -> None:
    """The disk is full where safetensors writes into a path with this name."""
    from safetensors import torch as library

    save = library.save_file

    def save_file(tensors: Any, file: Any, metadata: Any = None) -> None:
        if name in str(file) and (everywhere or "anyorder-" not in str(file)):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, file, metadata)

    monkeypatch.setattr("anyorder.checkpoints.huggingface.save_file", save_file)
    monkeypatch.setattr("anyorder.training.state.save_file", save_file)


@pytest.mark.parametrize("lora", [False, True])
def test_a_full_disk_at_the_end_keeps_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:  # fmt: skip
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    options: dict[str, Any] = {}
    if lora:
        runs.run(settings(tmp_path, output=tmp_path / "base", steps=1))
        options = {"init": str(tmp_path / "base"), "lora_rank": 2}
    runs.run(settings(tmp_path, output=tmp_path / "whole", **options))
    with monkeypatch.context() as patch:
        refuse("/..partial.partial/", patch)
        with pytest.raises(UserError, match=r"space left on device\): make room, then resume writes it from '.*-4'\.$"):
            runs.run(settings(tmp_path, **options))
        # Without checkpoints, in the folder for temporary files.
        with pytest.raises(UserError, match=r"\): make room; the network is in '.*'") as raised:
            runs.run(settings(tmp_path, output=tmp_path / "none", save_every=0, **options))
        [rescued] = tmp_path.glob("anyorder-*/none")
        assert repr(str(rescued)) in str(raised.value)
    assert (rescued / "model.safetensors").read_bytes() == network_of(tmp_path / "whole")
    anyorder.load(rescued, device="cpu")
    runs.run(settings(tmp_path, resume=True, **options))
    assert network_of(tmp_path / "out") == network_of(tmp_path / "whole")


def test_a_full_disk_at_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refuse(".partial/checkpoint-2", monkeypatch)
    message = r"^checkpoint '.*checkpoint-2' cannot be written \(No space left on device\): make room, then go on with"
    with pytest.raises(UserError, match=message):
        runs.run(settings(tmp_path, save_every=1))
    assert [path.name for path in whole_checkpoints(tmp_path / "out" / "checkpoints")] == ["checkpoint-1"]
    assert len(list(tmp_path.glob("anyorder-*/out/model.safetensors"))) == 1
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refuse("", monkeypatch, everywhere=True)
    with pytest.raises(UserError, match=r"nor can '.*out': make room, then go on with resume\.$"):
        runs.run(settings(tmp_path, save_every=1, resume=True))


# ------------------------------------------------------------------------------------------------ SIGKILL

KINDS: dict[str, list[str]] = {
    "autoregressive": [],
    "permutation": ["--objective=permutation", "--predicted=0.5"],
    "mixture": ["--objective=mixture", "--shares=autoregressive=0.5", "--shares=permutation=0.5"],
    "streaming": ["--streaming"],
    "workers": ["--workers=2"],
    "bfloat16": ["--precision=bfloat16"],
    "accumulation": ["--accumulation=3", "--log_every=7"],
    "lora, diffusion, workers": ["--init", "--lora_rank=2", "--objective=masked-diffusion", "--workers=1"],
    "sft, masked diffusion": ["sft", "--init", "--objective=masked-diffusion"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_command(tmp_path: Path, project_root: Path, number: int, code: int, workers: int) -> None:
    """The signal goes to the whole group of processes, as from a terminal or a job scheduler."""
    settings(tmp_path)
    words = [
        sys.executable, "-m", "anyorder", "pretrain", f"--data={tmp_path / 'text.txt'}", f"--output={tmp_path / 'out'}",
        f"--cache_dir={tmp_path / 'cache'}", "--width=16", "--layers=1", "--heads=2", "--vocab_size=290",
        "--batch_size=2", "--length=16", "--steps=100000", "--log_every=1", f"--workers={workers}", "--tensorboard",
    ]  # fmt: skip
    process = subprocess.Popen(
        words, cwd=project_root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    runs_folder = tmp_path / "out" / "checkpoints" / "runs"
    while not list(runs_folder.glob("*/events*")):
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error.decode()
    assert b"Traceback" not in error
    assert b"`--resume` with the same options resumes from the last checkpoint" in error.replace(b"\n", b" ")
    assert len(whole_checkpoints(tmp_path / "out" / "checkpoints")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_and_resumed(tmp_path: Path, project_root: Path, kind: str) -> None:
    """SIGKILL before, between and within checkpoints, for every kind of run: the same bytes and the same curve."""
    runs.run(settings(tmp_path, output=tmp_path / "base", steps=1, length=32, save_every=0))
    (tmp_path / "answers.jsonl").write_text(
        "\n".join(json.dumps({"prompt": line[:12], "response": line[12:]}) for line in TEXT.splitlines())
    )
    words = list(KINDS[kind])
    command = words.pop(0) if words[:1] == ["sft"] else "pretrain"
    small = ["--width=16", "--layers=1", "--heads=2", "--vocab_size=290"]
    if words[:1] == ["--init"]:
        words[:1] = [f"--init={tmp_path / 'base'}"]
        small = []
    data = tmp_path / ("answers.jsonl" if command == "sft" else "text.txt")
    common = ["--steps=60", "--batch_size=2", "--length=32", "--log_every=5", "--save_every=2", "--keep=1"]

    def start(name: str, *more: str) -> subprocess.Popen[bytes]:
        options = [f"--data={data}", f"--output={tmp_path / name}", f"--cache_dir={tmp_path / 'cache'}"]
        return subprocess.Popen(
            [sys.executable, "-m", "anyorder", command, *options, *common, *small, *words, *more], cwd=project_root,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(name: str, *more: str) -> None:
        process = start(name, *more)
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()

    finish("whole")
    source = random.Random(kind)
    place = tmp_path / "killed" / "checkpoints"
    for kills, moment in enumerate((0, source.randrange(4, 25), source.randrange(25, 55))):
        process = start("killed", *(["--resume"] if kills else []))
        while not (place.is_dir() if moment == 0 else any(_step(path) >= moment for path in whole_checkpoints(place))):
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(source.random() * 0.05)
        process.kill()
        process.communicate()
    finish("killed", "--resume")
    assert network_of(tmp_path / "killed") == network_of(tmp_path / "whole")
    whole, killed = (json.loads((tmp_path / name / "log.json").read_text())["log"] for name in ("whole", "killed"))
    assert curve(killed) == curve(whole)
    assert summary(killed) == summary(whole)
    assert [path.name for path in place.iterdir()] == ["checkpoint-60"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")] == []


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])
