"""transformers splits our networks by the same plan, as `from_pretrained(distributed_config=...)`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig

import anyorder
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.model.config import ModelConfig
from anyorder.parallel.plans import style_of, tensor_plan, transformers_plan
from tests.parallel.launch import on_processes
from tests.parallel.split import NETWORKS, built, close


def read_by_transformers(folder: Path) -> None:
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    for name in NETWORKS:
        place = folder / name
        whole, _ = anyorder.load(place, device="cpu")
        split = AnyOrderForCausalLM.from_pretrained(place, distributed_config=DistributedConfig(tp_size=2))
        ids = torch.arange(14).view(2, 7) % 30
        with torch.no_grad():
            close(split(ids).logits, whole(ids).logits, f"logits of {name}")
        written = split.generate(ids, max_new_tokens=8, do_sample=False)
        expected = anyorder.generate(whole, None, ids, max_new_tokens=8)
        assert written[:, 7:].tolist() == expected.token_ids, name


@pytest.mark.slow
def test_transformers_computes_the_same(tmp_path: Path) -> None:
    for name in NETWORKS:
        anyorder.save(built(name, vocab_size=30), None, tmp_path / name)
    on_processes(2, read_by_transformers, tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_name_what_a_network_has(name: str) -> None:
    """Each pattern fits a module or a parameter, and each matrix but those of routers and query rows has a style."""
    model = built(name)
    named = {**dict(model.named_modules()), **dict(model.named_parameters(remove_duplicate=False))}
    plan = tensor_plan(model.config)
    assert {style_of(name, plan) for name in named} - {None} == set(plan.values())
    for pattern in (*plan, *(f"model.{pattern}" for pattern in transformers_plan(model.config))):
        assert any(style_of(name, {pattern: "style"}) for name in named), pattern
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.endswith("mlp.gate.weight"):
            assert style_of(name, plan) or style_of(name.rpartition(".")[0], plan), name


def test_a_configuration_of_transformers_has_the_plan() -> None:
    model = built("plain")
    face = AnyOrderForCausalLM.of(model)
    assert isinstance(model.config, ModelConfig)
    assert face.config.base_model_tp_plan == transformers_plan(model.config)
    assert face.tp_plan == {f"model.{name}": style for name, style in transformers_plan(model.config).items()} | {
        "lm_head": "colwise_gather_output"
    }
    assert "base_model_tp_plan" not in face.config.to_dict()
