"""Tensors that files name, cut or turn otherwise: both ways, in shards, and what is wrong with damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anyorder.checkpoints import load_model, save_model
from anyorder.checkpoints.layouts import Gathered, Rule, stored
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import Rotary

PLAIN: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rotary": Rotary(theta=500.0), "initializer_range": 0.3, "eos_token_ids": (2,),
}  # fmt: skip

NETWORKS: dict[str, ModelConfig] = {
    "MixtralForCausalLM": ModelConfig(**PLAIN, experts=Experts(number=3, chosen=2, width=10, normalise=True)),
    "Qwen3MoeForCausalLM": ModelConfig(
        **PLAIN | {"intermediate_size": 24}, qk_norm="learned", experts=Experts(number=3, chosen=2, width=10),
        layers=(LayerKind(), LayerKind(experts=True)),
    ),
    "OlmoeForCausalLM": ModelConfig(
        **PLAIN, qk_norm="learned-full-width", experts=Experts(number=3, chosen=2, width=10)
    ),
    "Llama4ForCausalLM": ModelConfig(
        **PLAIN | {"intermediate_size": 24}, qk_norm="weightless",
        layers=(
            LayerKind(chunk=4),
            LayerKind(rotary=False, query_scale=QueryScale(strength=0.5, period=4), experts=True),
        ),
        experts=Experts(number=3, chosen=1, width=10, score="sigmoid", weighted="input", shared_width=10),
    ),
    "AnyOrderForCausalLM": ModelConfig(
        **PLAIN, layers=(LayerKind(experts=True), LayerKind(window=3)),
        experts=Experts(
            number=4, chosen=2, width=10, bias="choice", groups=2, kept_groups=1, block_length=4, block_capacity=3
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("max_shard_size", [None, 4000])
@pytest.mark.parametrize("name", NETWORKS)
def test_folders_both_ways(name: str, max_shard_size: int | None, tmp_path: Path) -> None:
    """Every number is another, so that no two experts, projections or rows can be exchanged unseen."""
    model = Llama(NETWORKS[name])
    save_model(model, tmp_path / "saved", max_shard_size=max_shard_size)
    assert json.loads((tmp_path / "saved/config.json").read_text())["architectures"] == [name]
    again = load_model(tmp_path / "saved")
    assert again.config == model.config
    state = again.state_dict()
    for tensor, weight in model.state_dict().items():
        assert torch.equal(state[tensor], weight), tensor


def test_rules_cut_and_turn() -> None:
    """Three tensors in one, one in several, experts apart, and rows of heads in pairs: by hand, and back."""
    rules = (
        Rule(ours=("model.layers.{}.q", "model.layers.{}.k"), theirs=("{}.qk",)),
        Rule(ours=("model.layers.{}.gate_up",), theirs=("{}.{expert}.gate", "{}.{expert}.up"), transposed=True),
        Rule(ours=("model.layers.{}.turned",), theirs=("{}.pairs",), interleaved=True),
    )
    tensors = {
        "model.layers.3.q": torch.arange(6).view(3, 2),
        "model.layers.3.k": torch.arange(6, 10).view(2, 2),
        "model.layers.3.gate_up": torch.arange(2 * 4 * 3).view(2, 4, 3),
        "model.layers.3.turned": torch.arange(8),
        "model.norm": torch.arange(3),
    }
    there = stored(tensors, rules, head_dim=4)
    assert there["3.qk"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert there["3.1.up"].tolist() == [[18, 21], [19, 22], [20, 23]]
    assert there["3.pairs"].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert set(there) == {"3.qk", "3.0.gate", "3.0.up", "3.1.gate", "3.1.up", "3.pairs", "model.norm"}
    shapes, found = ({name: tuple(t.shape) for name, t in some.items()} for some in (tensors, there))
    gathered = Gathered(Path(), rules, shapes, found, 4, ())
    for name in gathered.names:
        back = gathered.read(name, lambda their, rows: there[their][... if rows is None else rows], torch.int64)
        assert torch.equal(back, tensors[name]), name


def test_files_with_all_experts_in_one_tensor(tmp_path: Path) -> None:
    """As transformers keeps them in memory, and some files have them."""
    model = Llama(NETWORKS["MixtralForCausalLM"])
    save_model(model, tmp_path / "saved")
    save_file(dict(model.state_dict()), tmp_path / "saved/model.safetensors", {"format": "pt"})
    again = load_model(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in model.state_dict().items())


FIRST = "model.layers.0.block_sparse_moe.experts.2.w3.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FIRST: None}, f"lacks tensor '{FIRST}': complete it, or mend the configuration beside it (layers, experts, "),
        ({FIRST: (9, 16)}, f"tensor '{FIRST}' in .* has shape [9, 16], but the configuration asks for [10, 16]: mend "),
        ({FIRST.replace("2", "3"): (10, 16)}, f"has tensor '{FIRST.replace('2', '3')}' that the network does not have"),
    ],
)
def test_damaged_files(change: dict[str, tuple[int, ...] | None], message: str, tmp_path: Path) -> None:
    save_model(Llama(NETWORKS["MixtralForCausalLM"]), tmp_path / "saved")
    file = tmp_path / "saved/model.safetensors"
    tensors = load_file(file)
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "saved")
    before, after = message.split(".*") if ".*" in message else ("", message)
    assert before in str(error.value)
    assert after in str(error.value)


def test_names_of_experts_in_files(tmp_path: Path) -> None:
    """Those on the hub, not those in memory."""
    save_model(Llama(NETWORKS["Qwen3MoeForCausalLM"]), tmp_path / "saved")
    with safe_open(tmp_path / "saved/model.safetensors", framework="pt") as file:
        names = {name for name in file.keys() if ".1.mlp" in name}  # noqa: SIM118 (no mapping)
    parts = {f"experts.{expert}.{name}_proj" for expert in range(3) for name in ("gate", "up", "down")}
    assert names == {f"model.layers.1.mlp.{part}.weight" for part in {*parts, "gate"}}
