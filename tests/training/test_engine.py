"""The engine: accumulation, processes, resuming, checkpoints that are whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.objectives import Autoregressive
from anyorder.training import Training, fit
from anyorder.training.engine import whole_checkpoints
from anyorder.training.samples import Row, Samples, StreamedSamples, make_batch
from tests.model.networks import VOCABULARY, network


class Ragged:
    """Rows of different lengths."""

    def __init__(self, count: int = 12) -> None:
        source = torch.Generator().manual_seed(5)
        lengths = torch.randint(3, 12, (count,), generator=source).tolist()
        self.rows = [torch.randint(VOCABULARY, (length,), generator=source).tolist() for length in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return {"input_ids": self.rows[index]}


def trained(steps: int = 6, folder: Path | None = None, **options: Any) -> tuple[Llama, list[dict[str, float]]]:
    """A small network after some training, and the log."""
    model, chosen = network(), {"batch_size": 2, "learning_rate": 1e-2, "log_every": 1} | options
    beside = {name: chosen.pop(name) for name in ("resume", "callbacks", "validation") if name in chosen}
    log = fit(model, Autoregressive(), Ragged(), Training(steps=steps, **chosen), folder=folder, **beside)
    return model, log


def weights(model: Llama) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def curve(log: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


# ------------------------------------------------------------------------------------------------ samples


def test_each_epoch_has_every_row_once_in_another_order() -> None:
    rows = Ragged()
    samples = Samples(rows, 36, seed=1)
    epochs = [[samples[12 * epoch + index]["input_ids"] for index in range(12)] for epoch in range(3)]
    for ids in epochs:
        assert sorted(ids) == sorted(rows.rows)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [samples[number]["sample"] for number in (0, 35)] == [0, 35]
    again = Samples(rows, 36, seed=1)
    assert [again[number] for number in (30, 2, 17)] == [samples[number] for number in (30, 2, 17)]
    assert Samples(rows, 36, seed=2)[0] != samples[0] or Samples(rows, 36, seed=2)[1] != samples[1]


def test_batches_of_packed_rows_and_of_answers() -> None:
    batch = make_batch([{"input_ids": [5, 6, 7, 8, 9], "document": [0, 0, 0, 1, 1], "sample": 3}])
    assert batch.position_BL.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.loss_mask_BL.all()
    rows = [
        {"input_ids": [1, 2, 3, 4, 5, 6], "prompt_length": 2, "turns": [[2, 3], [4, 6]], "sample": 0},
        {"input_ids": [1, 2, 3], "prompt_length": 1, "turns": [[1, 3]], "sample": 1},
    ]
    batch = make_batch(rows)
    assert batch.loss_mask_BL.tolist() == [[False, False, True, False, True, True], [False, True, True, *[False] * 3]]
    assert batch.valid_BL.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert batch.sample_B.tolist() == [0, 1]


# ------------------------------------------------------------------------------------------------ steps


def test_accumulated_batches_are_one_large_batch() -> None:
    """Ragged, so that a mean of means would be another number."""
    large, log_of_large = trained(batch_size=6)
    small, log_of_small = trained(batch_size=2, accumulation=3)
    assert (weights(large) - weights(small)).abs().max() < 1e-6 * weights(large).abs().max()
    for (_, expected), (_, found) in zip(curve(log_of_large), curve(log_of_small), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


def test_validation_is_the_loss_of_all_rows_and_changes_nothing() -> None:
    rows = Ragged(5)
    model, log = trained(evaluate_every=2, validation={"text": (Autoregressive(), rows)})
    plain, _ = trained()
    assert torch.equal(weights(model), weights(plain))
    looks = [entry for entry in log if "eval_text" in entry]
    assert [entry["step"] for entry in looks] == [2, 4, 6, 6]
    nats, count = 0.0, 0
    with torch.no_grad():
        for ids in rows.rows:
            log_prob = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats -= sum(float(log_prob[at - 1, ids[at]]) for at in range(1, len(ids)))
            count += len(ids) - 1
    assert looks[-1]["eval_text"] == pytest.approx(nats / count, rel=1e-5)


# ------------------------------------------------------------------------------------------------ resuming


def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole, log = trained(steps=8, folder=tmp_path / "whole", save_every=3)

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    options = {"steps": 8, "folder": tmp_path / "cut", "save_every": 3}
    with pytest.raises(KeyboardInterrupt):
        trained(**options, callbacks=[Kill()])
    assert [path.name for path in whole_checkpoints(tmp_path / "cut")] == ["checkpoint-3"]
    resumed, log_of_resumed = trained(**options, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert curve(log_of_resumed) == curve(log)


def test_checkpoints_hold_the_weights_and_the_oldest_go(tmp_path: Path) -> None:
    model, _ = trained(steps=4, folder=tmp_path, save_every=1, keep=2)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(stored[name], weight) for name, weight in model.named_parameters())
    assert not (tmp_path / ".partial" / "checkpoint-4").exists()


SCRIPT = """
import os, sys
from collections.abc import Iterator
from pathlib import Path
sys.path.insert(0, os.getcwd())
import torch
torch.set_num_threads(1)
from tests.training.test_engine import trained, weights, curve
import json
folder = Path(sys.argv[1])
model, log = trained(steps=40, folder=folder, save_every=1, resume="resume" in sys.argv)
print(json.dumps({"weights": weights(model).tolist(), "curve": curve(log)}))
"""


def run(folder: Path, project_root: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), *words], cwd=project_root, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(tmp_path: Path, project_root: Path) -> None:
    """SIGKILL as it comes, also while a checkpoint is written, since there is one after every step."""
    expected = json.loads(run(tmp_path / "whole", project_root).communicate()[0])
    folder = tmp_path / "killed"
    for kills, moment in enumerate((1, 7, 15, 26)):
        process = run(folder, project_root, *(["resume"] if kills else []))
        while not any(int(path.name.split("-")[1]) >= moment for path in whole_checkpoints(folder)):
            assert process.poll() is None
            time.sleep(0.003 * (kills + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in whole_checkpoints(folder):
            assert (path / "trainer_state.json").is_file()
    found = json.loads(run(folder, project_root, "resume").communicate()[0])
    assert found == expected


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no checkpoint to resume from: leave out resume\."):
        trained(folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"^steps is 0: give a number above 0\.$"),
        ({"steps": 5, "accumulation": 0}, r"^accumulation is 0: give a number above 0\.$"),
        ({"steps": 5, "warmup": 5}, r"^warmup is 5: give less than all 5 steps\.$"),
        ({"steps": 5, "workers": -1}, r"^workers is -1: give 0 or a number above\.$"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Training(**options)


def test_streamed_rows_come_as_they_are_and_again(tmp_path: Path) -> None:
    rows = Ragged(5)
    numbered = list(StreamedSamples([rows[index] for index in range(5)], 12))
    assert [row["sample"] for row in numbered] == list(range(12))
    assert [row["input_ids"] for row in numbered] == [rows.rows[number % 5] for number in range(12)]
    with pytest.raises(UserError, match="the data have 0 rows"):
        list(StreamedSamples([], 3))

    class Stream:
        """Without a length."""

        def __iter__(self) -> Iterator[Row]:
            return (rows[index] for index in range(5))

    training = Training(steps=6, batch_size=2, learning_rate=1e-2, log_every=1, save_every=2)
    whole, cut = network(), network()
    log = fit(whole, Autoregressive(), Stream(), training, folder=tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = fit(cut, Autoregressive(), Stream(), training, folder=tmp_path, resume=True)
    assert torch.equal(weights(whole), weights(cut))
    assert curve(log) == curve(again)


def test_a_full_disk_leaves_no_half_of_a_checkpoint(tmp_path: Path, project_root: Path) -> None:
    script = """
import os, resource, sys
sys.path.insert(0, os.getcwd())
import torch
from collections.abc import Iterator
from pathlib import Path
from tests.training.test_engine import trained
from anyorder.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # bytes of a file
try:
    trained(steps=2, folder=Path(sys.argv[1]), save_every=1)
except UserError as error:
    print(error)
"""
    words = [sys.executable, "-c", script, str(tmp_path)]
    said = subprocess.run(words, cwd=project_root, check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"checkpoint '.*checkpoint-1' cannot be written \(.*\): make room, then .* resume\.\n", said)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert whole_checkpoints(tmp_path) == []
