"""Several processes: data-parallel as `torchrun` starts them, and weights that are really sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HEADER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
out = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
"""

DATA_PARALLEL = """
from tests.training.test_engine import trained, weights, curve
model, log = trained(steps=6, batch_size=int(sys.argv[2]), folder=out.with_suffix(".run"), save_every=2)
if rank == 0:
    out.write_text(json.dumps({"weights": weights(model).tolist(), "curve": curve(log)}))
"""

SHARDED = """
import dataclasses
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from anyorder.checkpoints.adapt import adapt
from anyorder.objectives import Permutation, summed_loss
from anyorder.training.engine import ModelWithLoss
from anyorder.training.samples import Collator, Samples
from anyorder.model.modes import ANY_ORDER
from tests.model.networks import network
from tests.training.test_engine import Ragged

world = int(os.environ.get("WORLD_SIZE", "1"))
pupil = ModelWithLoss(adapt(network(), (ANY_ORDER,)))
share = None
if world > 1:
    torch.distributed.init_process_group("gloo")
    for layer in pupil.model.model.layers:
        fully_shard(layer)
    fully_shard(pupil)
    whole = sum(weight.numel() for weight in pupil.parameters())
    share = sum(weight.to_local().numel() for weight in pupil.parameters()) / whole
    assert all(isinstance(weight, DTensor) for weight in pupil.parameters())
optimizer = torch.optim.AdamW(pupil.parameters(), lr=1e-2)
collator = Collator(objective=Permutation(), seed=0, samples_per_step=4)
samples = Samples(Ragged(), 4 * 4, seed=0)
losses = []
for step in range(4):
    numbers = range(4 * step, 4 * step + 4)
    count = collator([samples[number] for number in numbers])["inputs"].count
    own = [samples[number] for number in list(numbers)[rank::world]]
    loss = pupil(collator(own)["inputs"]) * world / count
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    total = loss.detach() / world
    if world > 1:
        torch.distributed.all_reduce(total)
    losses.append(float(total))
weights = torch.cat([
    (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().flatten()
    for _, weight in sorted(pupil.named_parameters())
])
if rank == 0:
    out.write_text(json.dumps({"weights": weights.tolist(), "curve": losses, "share": share}))
if world > 1:
    torch.distributed.destroy_process_group()
"""


def run(script: str, out: Path, processes: int, project_root: Path, *words: object) -> dict[str, Any]:
    """What the script wrote."""
    file = out.with_suffix(".py")
    file.write_text(HEADER + script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start = torchrun if processes > 1 else [sys.executable]
    words = (file, out, *words)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*start, *map(str, words)], cwd=project_root, env=environment, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    expected, found = torch.tensor(one["weights"]), torch.tensor(two["weights"])
    assert (expected - found).abs().max() < 1e-5 * expected.abs().max()
    assert torch.tensor(two["curve"]).flatten().tolist() == pytest.approx(
        torch.tensor(one["curve"]).flatten().tolist(), rel=1e-5
    )


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path, project_root: Path) -> None:
    one = run(DATA_PARALLEL, tmp_path / "one.json", 1, project_root, 4)
    two = run(DATA_PARALLEL, tmp_path / "two.json", 2, project_root, 2)
    same(one, two)
    assert sorted(path.name for path in (tmp_path / "two.run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.slow
def test_sharded_weights_train_like_whole_ones(tmp_path: Path, project_root: Path) -> None:
    """`fully_shard` (FSDP2) applied directly, with query rows and ragged samples."""
    one = run(SHARDED, tmp_path / "one.json", 1, project_root)
    two = run(SHARDED, tmp_path / "two.json", 2, project_root)
    same(one, two)
    assert 0.4 < two["share"] < 0.6
