"""How much is learnt, how fast, and from what: defaults by what is trained."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyorder.errors import UserError
from anyorder.objectives import Autoregressive, Objective
from anyorder.training import loop, runs
from anyorder.training.loop import fit
from anyorder.training.samples import TensorRows
from anyorder.training.settings import Run, Training
from tests.model.networks import network
from tests.training.test_interrupted import settings


def run(**changes: Any) -> Run:
    return Run(**{"data": Path("x"), "output": Path("y"), **changes})


@pytest.mark.parametrize(
    ("tuning", "options", "expected"),
    [
        (False, {}, 1e-3),
        (False, {"init": "z"}, 1e-4),
        (False, {"init": "z", "lora_rank": 4}, 2e-4),
        (True, {"init": "z"}, 2e-5),
        (True, {"init": "z", "lora_rank": 4}, 2e-4),
        (True, {"init": "z", "learning_rate": 0.5}, 0.5),
    ],
)
def test_learning_rates_by_what_is_trained(tuning: bool, options: dict[str, Any], expected: float) -> None:
    assert run(**options).completed(tuning=tuning).learning_rate == expected


def test_the_learning_rate_reaches_the_optimizer(tmp_path: Path) -> None:
    log = runs.run(settings(tmp_path, schedule="constant", warmup=0))
    assert {entry["learning_rate"] for entry in log if "learning_rate" in entry} == {1e-3}
    chosen = settings(tmp_path, init=str(tmp_path / "out"), output=tmp_path / "on", schedule="constant", warmup=0)
    assert {entry["learning_rate"] for entry in runs.run(chosen) if "learning_rate" in entry} == {1e-4}
    assert json.loads((tmp_path / "on" / "settings.json").read_text())["learning_rate"] == 1e-4


def test_tuning_needs_a_network_to_tune(tmp_path: Path) -> None:
    """On the command line before PyTorch is imported."""
    message = "init is not given, the network to fine-tune: give one, or train one with pretrain first."
    with pytest.raises(UserError) as error:
        runs.run(settings(tmp_path), tuning=True)
    assert str(error.value) == message
    assert not (tmp_path / "out").exists()
    words = ["sft", "--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out")]
    script = f"import sys; from anyorder.cli import main; print(main({words!r}), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "2 False\n"
    assert ran.stderr == f"error: --{message}\n"


# ------------------------------------------------------------------------------------------------ steps and epochs


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"^steps is 1000 beside epochs, which is 2: leave out one of them\.$"):
        run(steps=1000, epochs=2)
    assert run().steps == Training().steps == 1000
    assert run(epochs=0.5).steps is None
    with pytest.raises(UserError, match=r"^epochs is 0: give a number above 0\.$"):
        run(epochs=0)
    with pytest.raises(UserError, match=r"^epochs is 1: streamed data are not counted .* so give steps instead\.$"):
        run(epochs=1, streaming=True)
    with pytest.raises(UserError, match=r"^warmup is 5: give less than all 3 steps\.$"):
        run(epochs=3, warmup=5, batch_size=4).in_steps(4, 1)


@given(
    st.integers(1, 500), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0, 3.3]),
)  # fmt: skip
def test_epochs_read_each_row_as_often(rows: int, batch: int, accumulation: int, processes: int, epochs: float) -> None:
    """The least number of steps whose samples are that many."""
    training = Training(epochs=epochs, batch_size=batch, accumulation=accumulation, warmup=0)
    steps = training.in_steps(rows, processes).total_steps
    each = batch * accumulation * processes
    wanted = round(epochs * 100) * rows  # in hundredths of a sample
    assert steps * each * 100 >= wanted
    assert steps == 1 or (steps - 1) * each * 100 < wanted


def test_epochs_of_a_fit() -> None:
    rows = TensorRows(torch.arange(40).reshape(10, 4) % 30)
    log = fit(network(), Autoregressive(), rows, Training(epochs=1.5, batch_size=4, log_every=1, warmup=0))
    assert log[-1]["step"] == 4  # 15 samples
    with pytest.raises(UserError, match=r"^epochs is 1, but the rows have no length: give steps instead\.$"):
        fit(network(), Autoregressive(), iter([{"input_ids": [1, 2]}]), Training(epochs=1))


def test_epochs_of_a_run_that_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the schedules of its objective go by the steps that they are."""
    taught: list[Objective] = []
    real = loop.fit

    def spied(network: Any, objective: Objective, *others: Any, **options: Any) -> Any:
        taught.append(objective)
        return real(network, objective, *others, **options)

    monkeypatch.setattr(runs, "fit", spied)
    told: list[str] = []
    options: dict[str, Any] = {"steps": None, "objective": "permutation", "order_schedule": "random-to-left"}
    log = runs.run(settings(tmp_path, epochs=0.5, **options), report=told.append)
    rows = int(next(line for line in told if "rows of data" in line).split(" rows")[0].split(", ")[1].replace(",", ""))
    steps = math.ceil(rows / 2 / 2)
    assert steps > 1
    assert log[-1]["step"] == steps
    runs.run(settings(tmp_path, output=tmp_path / "other", **options | {"steps": steps}))
    assert taught[0] == taught[1]
    kept = tmp_path / "out/settings.json"  # as an earlier version wrote it, which did not have all of them
    written = json.loads(kept.read_text())
    kept.write_text(json.dumps({name: value for name, value in written.items() if "balance" not in name}))
    again = runs.run(settings(tmp_path, epochs=0.5, resume=True, **options))
    assert again[-1]["step"] == steps
    with pytest.raises(UserError, match=r"^epochs is 2, but the training in '.*out' began with 0\.5: give that"):
        runs.run(settings(tmp_path, epochs=2, resume=True, **options))
    with pytest.raises(UserError, match=r"^epochs is not given, but the training in '.*out' began with 0\.5: "):
        runs.run(settings(tmp_path, resume=True, **options | {"steps": steps}))
    with pytest.raises(UserError, match=r"^last_answer_only is True, but .* began without it: leave it out"):
        runs.run(settings(tmp_path, epochs=0.5, resume=True, **options, last_answer_only=True))
