"""Training from left to right."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.training import train_causal
from tests.writers import write_left_to_right


class Steps(TrainerCallback):
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.steps.append(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.losses += [entry for name, entry in others["logs"].items() if name == "loss"]


def rows(config: ModelConfig) -> torch.Tensor:
    """Each token is the one before plus 1."""
    start_N1 = torch.randint(config.vocab_size, (32, 1))
    return (start_N1 + torch.arange(16)) % config.vocab_size


def test_learns_to_count(tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config.replace(vocab_size=16)
    model, steps = Llama(config), Steps()
    loss = train_causal(model, rows(config), steps=60, batch_size=8, learning_rate=3e-3, callbacks=[steps])
    assert steps.steps == list(range(1, 61))
    assert loss == steps.losses[-1] < 0.1 < steps.losses[0]
    assert not model.training
    assert write_left_to_right(model, [[3, 4, 5]], max_new_tokens=6).written == [[6, 7, 8, 9, 10, 11]]
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_network(tiny_config: ModelConfig) -> None:
    config = tiny_config.replace(vocab_size=16)
    ids_NL = rows(config)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = Llama(config)
        train_causal(model, ids_NL, steps=3, batch_size=4, learning_rate=1e-2, seed=seed)
        weights.append(model.lm_head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["steps", "batch_size", "learning_rate"])
def test_refuses_numbers_that_train_nothing(tiny_config: ModelConfig, name: str) -> None:
    options: dict[str, Any] = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3} | {name: 0}
    with pytest.raises(UserError, match=rf"{name} is 0: give a number above 0\."):
        train_causal(Llama(tiny_config), rows(tiny_config), **options)


def test_says_which_package_is_missing(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package accelerate.*pip install 'anyorder\[train\]'\."):
        train_causal(Llama(tiny_config), rows(tiny_config), steps=1, batch_size=1, learning_rate=1e-3)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_have_32_bits(tiny_config: ModelConfig, seed: int) -> None:
    ids_NL = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(UserError, match=rf"^seed is {seed}: give a whole number from 0 to 4294967295\.$"):
        train_causal(Llama(tiny_config), ids_NL, steps=1, batch_size=1, learning_rate=1e-3, seed=seed)
