"""A process that is killed ends the others, and the training goes on from the last whole checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import anyorder
from anyorder.training import runs
from anyorder.training.engine import whole_checkpoints
from tests.training.test_engine import curve, weights
from tests.training.test_interrupted import settings


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_training_goes_on(tmp_path: Path) -> None:
    """Two processes, one of them killed behind a checkpoint; then this one alone reads what they left."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("finds processes as Linux names them")
    options = {"steps": 60, "save_every": 5, "batch_size": 2, "fsdp": True}
    split = settings(tmp_path, **options)
    given = json.dumps(dataclasses.asdict(split), default=str)
    (tmp_path / "run.json").write_text(json.dumps({name: value for name, value in json.loads(given).items() if value}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "anyorder"]
    torchrun = subprocess.Popen(
        [*command, "pretrain", "--config", str(tmp_path / "run.json")], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not whole_checkpoints(split.output / "checkpoints"):
            assert torchrun.poll() is None, torchrun.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        processes = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        [second] = [pid for pid in processes if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
        os.kill(int(second), signal.SIGKILL)
        assert torchrun.wait(timeout=30) != 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    finally:
        torchrun.kill()
    assert not (split.output / "config.json").exists()
    resumed = runs.run(settings(tmp_path, resume=True, **options | {"batch_size": 4}))
    whole = settings(tmp_path, output=tmp_path / "whole", **options | {"batch_size": 4})
    expected = runs.run(whole)
    torch.testing.assert_close(torch.tensor(curve(resumed)), torch.tensor(curve(expected)), rtol=1e-5, atol=0)
    one, other = (weights(anyorder.load(place)[0]) for place in (split.output, whole.output))
    assert (one - other).abs().max() < 1e-5 * other.abs().max()
