"""From settings to what is learnt: the network's own mode unless told, and no mode lost without a word."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyorder
from anyorder.cli import main
from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.objectives import (
    Annealing,
    BlockDiffusion,
    MaskedDiffusion,
    MaskedDiffusionTuning,
    Mixture,
    Objective,
    Permutation,
)
from anyorder.training import loop, runs
from anyorder.training.build import build_objective, lost_modes, with_own_mode
from anyorder.training.settings import Run, Training
from tests.cli.test_main import mistake
from tests.model.networks import network

MASK = 7


def settings(**changes: Any) -> Run:
    return Run(**{"data": Path("x"), "output": Path("y"), "init": "z", **changes})


@pytest.mark.parametrize(
    ("mode", "objective", "shifted", "block_length"),
    [
        (LEFT_TO_RIGHT, "autoregressive", False, None),
        (ANY_ORDER, "permutation", False, None),
        (diffusion(MASK), "masked-diffusion", False, None),
        (diffusion(MASK, shifted=True), "masked-diffusion", True, None),
        (blocks(MASK, 4), "block-diffusion", False, 4),
    ],
)
def test_a_network_keeps_its_own_way(mode: Mode, objective: str, shifted: bool, block_length: int | None) -> None:
    config = network().config.replace(modes=(mode,))
    run = with_own_mode(settings(), config)
    assert (run.objective, run.shifted, run.block_length) == (objective, shifted, block_length)
    (taught,) = build_objective(run, MASK, config, tuning=False).modes
    assert taught == mode
    assert lost_modes(run, config) == []


def test_conventions_of_the_network_stay_with_the_objective_named() -> None:
    dream = network().config.replace(modes=(diffusion(MASK, shifted=True),))
    assert with_own_mode(settings(objective="masked-diffusion"), dream).shifted
    assert not with_own_mode(settings(objective="block-diffusion"), dream).shifted
    assert with_own_mode(settings(objective="block-diffusion"), dream).block_length == 32
    in_blocks = network().config.replace(modes=(blocks(MASK, 4),))
    assert with_own_mode(settings(objective="block-diffusion", block_length=8), in_blocks).block_length == 8


@pytest.mark.parametrize(("given", "by"), [(None, "sample"), ("sample", "sample"), ("step", "step")])
def test_what_a_mixture_is_drawn_for(given: str | None, by: str) -> None:
    run = settings(objective="mixture", shares=["autoregressive=1", "permutation=1"], mixture_by=given)
    objective = build_objective(run, None, network().config, tuning=False)
    assert isinstance(objective, Mixture)
    assert objective.by == by


def test_of_several_ways_the_one_to_keep_is_asked_for() -> None:
    config = network().config.replace(modes=(LEFT_TO_RIGHT, diffusion(MASK)))
    with pytest.raises(UserError) as error:
        with_own_mode(settings(), config)
    assert str(error.value) == (
        "objective is not given, and the network in 'z' writes by left-to-right and diffusion, of which training keeps "
        "what it teaches: give one of autoregressive, masked-diffusion, or mixture with shares of several."
    )
    run = with_own_mode(settings(objective="autoregressive"), config)
    assert lost_modes(run, config) == ["diffusion"]
    mixture = settings(objective="mixture", shares=["autoregressive=1", "masked-diffusion=1"])
    assert lost_modes(with_own_mode(mixture, config), config) == []


def test_a_setting_of_another_way_is_refused_when_the_network_is_known() -> None:
    with pytest.raises(UserError, match="for the objective 'masked-diffusion', which does not have it"):
        with_own_mode(settings(predicted=0.5), network().config.replace(modes=(diffusion(MASK),)))


def test_noise_as_the_settings_say() -> None:
    config = network().config.replace(modes=(diffusion(MASK),), eos_token_ids=(2,))
    run = with_own_mode(settings(eps=0.01, random_length_prob=0.2), config)
    whole = build_objective(run, MASK, config, tuning=False)
    assert isinstance(whole, MaskedDiffusion)
    assert (whole.eps, whole.random_length) == (0.01, 0.2)
    with pytest.raises(UserError, match="but answers are not cropped: leave it out"):
        run.completed(tuning=True)
    tuned = build_objective(with_own_mode(settings(eps=0.01), config), MASK, config, tuning=True)
    assert isinstance(tuned, MaskedDiffusionTuning)
    assert tuned.eps == 0.01
    in_blocks = build_objective(
        with_own_mode(settings(objective="block-diffusion", eps=0.5), config), MASK, config, tuning=True
    )
    assert isinstance(in_blocks, BlockDiffusion)
    assert in_blocks.eps == 0.5
    for name, value in (("eps", 0.0), ("random_length_prob", 1.5)):
        with pytest.raises(UserError, match=f"{name} is {value}: give a"):
            settings(objective="masked-diffusion", **{name: value})


def test_a_schedule_goes_by_the_steps_that_epochs_amount_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Objective, int]] = []

    def fit(model: Llama, objective: Objective, rows: object, training: Training, **others: object) -> None:
        found.append((objective, training.total_steps))
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "fit", fit)
    (tmp_path / "d.txt").write_text("some words and more of them\n" * 100)
    settings = Run(
        data=tmp_path / "d.txt", output=tmp_path / "out", cache_dir=tmp_path / "c", objective="permutation",
        order_schedule="left-to-random", epochs=3, batch_size=2, length=16, vocab_size=280, width=16, layers=1, heads=2,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        runs.run(settings)
    ((objective, steps),) = found
    assert isinstance(objective, Permutation)
    assert isinstance(objective.schedule, Annealing)
    assert objective.schedule.steps == steps > 3


def test_float16_needs_a_gpu_and_scales_the_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training = Training(steps=2, precision="float16")
    arguments = loop._arguments(training, tmp_path, saves=False, report_to=[], find_unused=False)
    assert arguments.fp16
    assert not arguments.bf16
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^precision is 'float16', which needs a GPU: give bfloat16 or float32\.$"):
        loop.check_machine(training)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_log_that_cannot_be_sent_is_told_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_folder: bool
) -> None:
    real = importlib.util.find_spec
    found = importlib.util.spec_from_loader("wandb", None) if is_folder else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: found if name == "wandb" else real(name, *more)
    )
    (tmp_path / "d.txt").write_text("some words\n" * 50)
    words = ["pretrain", "--data", str(tmp_path / "d.txt"), "--output", str(tmp_path / "out"), "--wandb"]
    expected = "--wandb is given, but its package is not installed: pip install wandb, or leave it out."
    assert mistake(capsys, *words) == expected
    assert not (tmp_path / "out").exists()


def test_the_log_goes_to_trainers_own_integration(tmp_path: Path) -> None:
    arguments = loop._arguments(Training(steps=1), tmp_path, saves=False, report_to=["wandb"], find_unused=False)
    assert arguments.report_to == ["wandb"]


@pytest.mark.parametrize("command", ["pretrain", "sft"])
def test_training_from_a_network_that_diffuses_leaves_one_that_does(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 5, 280)
    tokenizer.add_special_tokens({"mask_token": "<m>"})
    mask_token_id: int = tokenizer.mask_token_id
    config = network().config.replace(
        vocab_size=len(tokenizer), modes=(diffusion(mask_token_id, shifted=True),),
        eos_token_ids=(tokenizer.eos_token_id,), bos_token_id=None, pad_token_id=None, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    anyorder.save(Llama(config), tokenizer, tmp_path / "init")
    data = tmp_path / "d.jsonl"
    record = {"text": "the cat sat on the mat"} if command == "pretrain" else {"prompt": "the cat", "response": "sat"}
    data.write_text("\n".join([json.dumps(record)] * 20))
    words = ["--data", data, "--init", tmp_path / "init", "--output", tmp_path / "out", "--cache_dir", tmp_path / "c"]
    more = ["--steps=1", "--batch_size=2", "--length=32", "--log_every=1"]
    assert main([command, *map(str, words), *more]) == 0
    assert "objective masked-diffusion" in capsys.readouterr().err
    trained, _ = anyorder.load(tmp_path / "out", device="cpu")
    assert trained.config.modes == config.modes
    words[5] = tmp_path / "other"
    assert main([command, *map(str, words), *more, "--objective=autoregressive"]) == 0
    assert "will no longer write by diffusion: a mixture keeps what it teaches" in " ".join(
        capsys.readouterr().err.split()
    )
