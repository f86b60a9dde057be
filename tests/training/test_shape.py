"""Networks from scratch of a given shape: the advanced one of `anyorder configs` learns by every objective."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import anyorder
from anyorder.checkpoints import read_checkpoint
from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.config_json import config_from_json
from anyorder.cli._sample_configs import EXAMPLE
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.objectives import Batch, summed_loss
from anyorder.training import Training, fit
from anyorder.training.runs import run
from anyorder.training.samples import Row
from anyorder.training.settings import Run
from tests.objectives.cases import END, OBJECTIVES


def test_the_example_is_as_it_says() -> None:
    config = config_from_json(EXAMPLE)
    with torch.device("meta"):
        model = Llama(config)
    experts = config.experts
    assert experts is not None
    idle = sum(kind.experts for kind in config.layers) * (experts.number - experts.chosen) * 3 * 192 * experts.width
    total = sum(weight.numel() for weight in model.parameters())
    assert round(total / 1e6) == 7
    assert round((total - idle) / 1e6) == 4
    assert {(kind.chunk, bool(kind.rotary), kind.experts) for kind in config.layers} == {
        (64, True, False), (64, True, True), (None, False, True),
    }  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_learns_by_every_objective(name: str) -> None:
    """A few steps on one text, with the term that keeps experts equally busy: the loss of the same draws falls."""
    small = EXAMPLE | {"vocab_size": END + 2, "hidden_size": 48, "head_dim": 16, "num_hidden_layers": 4}
    torch.manual_seed(0)
    config = config_from_json(small | {"attention_chunk_size": 4, "floor_scale": 4})
    model = adapt(Llama(config), (LEFT_TO_RIGHT, ANY_ORDER))
    text = torch.randint(END, (9,)).tolist()
    inputs = OBJECTIVES[name].inputs(Batch.of([text] * 16), 0)
    with torch.no_grad():
        before = float(summed_loss(model, inputs))
    rows: list[Row] = [{"input_ids": text}] * 8
    steps = Training(steps=6, batch_size=8, learning_rate=1e-2, warmup=0, log_every=2, balance_loss=0.01)
    log = [entry for entry in fit(model, OBJECTIVES[name], rows, steps) if "loss" in entry]
    with torch.no_grad():
        assert float(summed_loss(model, inputs)) < before
    assert log[-1]["expert_load_max"] >= 1


def test_a_run_from_a_shape(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A list is a sequence of values.\n\n" * 40, encoding="utf-8")
    small = EXAMPLE | {"hidden_size": 48, "head_dim": 16, "num_hidden_layers": 4, "bos_token_id": 1}
    (tmp_path / "shape.json").write_text(json.dumps(small), encoding="utf-8")
    run(
        Run(
            data=tmp_path / "text.txt", output=tmp_path / "out", shape=tmp_path / "shape.json", vocab_size=300, steps=2,
            batch_size=2, length=300, balance_loss=0.01, save_every=1,
        )
    )  # fmt: skip
    model, tokenizer = anyorder.load(tmp_path / "out", device="cpu")
    assert model.config.layers == config_from_json(small).layers
    assert model.config.context_length == 300
    assert anyorder.generate(model, tokenizer, "A list", max_new_tokens=4).token_ids
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "llama4_text"
    checkpoint = tmp_path / "out/checkpoints/checkpoint-2"
    kept = read_checkpoint(checkpoint)
    assert all(torch.equal(kept.read(name), weight) for name, weight in model.named_parameters())


def test_shapes_that_cannot_be(tmp_path: Path) -> None:
    kwargs = {"data": tmp_path, "output": tmp_path / "out"}
    with pytest.raises(UserError, match=r"^width is 512: shape says the same, so leave out width or shape\.$"):
        Run(**kwargs, shape=tmp_path / "shape.json", width=512)
    with pytest.raises(UserError, match=r"^shape is .* beside init, which decides it: leave out one of them\.$"):
        Run(**kwargs, shape=tmp_path / "shape.json", init="somewhere")
