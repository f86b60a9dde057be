"""Mixtures of experts as models of transformers: read from their own folders, drawn, written and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anyorder import AnyOrderForCausalLM
from anyorder.checkpoints import save_model
from anyorder.model.llama import Llama
from tests.checkpoints.test_layouts import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_folders_of_mixtures(name: str, tmp_path: Path) -> None:
    """Their tensors are cut otherwise there, which `from_pretrained` sees to; what it saves has our names."""
    model = Llama(NETWORKS[name]).eval()
    save_model(model, tmp_path / "theirs")
    ids = torch.randint(NETWORKS[name].vocab_size, (2, 7))
    for place in ("theirs", "ours"):
        read = AnyOrderForCausalLM.from_pretrained(tmp_path / place)
        with torch.no_grad():
            torch.testing.assert_close(read(ids).logits, model(ids).logits)
        if place == "theirs":
            read.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == "anyorder"
    assert read.generate(ids[:1], max_new_tokens=3, do_sample=False).shape == (1, 10)


def test_new_networks_are_drawn() -> None:
    config = AnyOrderForCausalLM.of(Llama(NETWORKS["AnyOrderForCausalLM"])).config
    model = AnyOrderForCausalLM(config)
    mixture: Any = model.model.layers[0].mlp
    assert float(mixture.experts.down_proj.detach().std()) == pytest.approx(config.initializer_range, rel=0.2)
    assert float(mixture.gate.weight.detach().std()) == pytest.approx(config.initializer_range, rel=0.3)
    assert not mixture.gate.expert_bias.any()
    ids = torch.randint(config.vocab_size, (2, 7))
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
