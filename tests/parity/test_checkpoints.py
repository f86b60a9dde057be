"""transformers and ours read each other's folders, and give the same logits; llama2.c's stories come out the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from anyorder.checkpoints import convert, load_model, load_tokenizer, save_model
from anyorder.model.llama import Llama
from tests.writers import write_left_to_right

LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

NETWORKS: dict[str, dict[str, Any]] = {
    "MHA": {},
    "GQA": {"num_key_value_heads": 2},
    "MQA": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "linear": {"rope_parameters": LINEAR, "num_key_value_heads": 2},
    "llama3": {"rope_parameters": LLAMA3, "eos_token_id": [5, 7], "pad_token_id": 0},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "rms_norm_eps": 1e-4},
}


def network(**changes: Any) -> LlamaForCausalLM:
    fields: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    model = LlamaForCausalLM(LlamaConfig(**(fields | changes))).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # which start as zeros and ones
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def assert_same_logits(theirs: LlamaForCausalLM, ours: Llama) -> None:
    """Equal to 1e-5 of the logits' scale, on twice as many positions as the networks are trained for."""
    token_ids = torch.randint(theirs.config.vocab_size, (2, 2 * theirs.config.max_position_embeddings))
    with torch.no_grad():
        expected: Tensor = theirs(token_ids).logits
        torch.testing.assert_close(ours(token_ids).logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", NETWORKS)
def test_folders_go_both_ways(name: str, max_shard_size: str, tmp_path: Path) -> None:
    theirs = network(**NETWORKS[name])
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    assert (tmp_path / "theirs" / "model.safetensors").exists() == (max_shard_size == "1GB")

    ours = load_model(tmp_path / "theirs")
    assert_same_logits(theirs, ours)

    save_model(ours, tmp_path / "ours", max_shard_size=None if max_shard_size == "1GB" else 100_000)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    again, report = loaded
    assert not any(report.values()), report
    assert type(again) is LlamaForCausalLM
    assert_same_logits(again, ours)
    expected = theirs.config.to_dict() | {"_name_or_path": ""}
    assert again.config.to_dict() | {"_name_or_path": ""} == expected
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs: Any = network()
    theirs.to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.dtype == dtype
    save_model(ours, tmp_path / "ours")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").dtype == dtype


@pytest.mark.parametrize("rope", [LINEAR, LLAMA3], ids=["linear", "llama3"])
def test_readers_of_the_old_form_alone_find_the_same(rope: dict[str, Any], tmp_path: Path) -> None:
    network(rope_parameters=dict(rope)).save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    fields, _ = LlamaConfig.get_config_dict(tmp_path / "ours")
    assert AutoConfig.from_pretrained(tmp_path / "ours").rope_parameters == rope
    del fields["rope_parameters"]
    assert LlamaConfig.from_dict(fields).rope_parameters == rope


# ------------------------------------------------------------------------------------------------ stories260K


@pytest.fixture(scope="module")
def story(shared_data: Path) -> str:
    """What run.c writes at temperature 0 in 256 steps, from nothing."""
    page = (shared_data / "stories260K" / "stories260K.md").read_text()
    return page.partition("-t 0.0\n")[2].partition("\n```")[0]


@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K.v1.bin"])
def test_the_story_in_transformers(shared_data: Path, story: str, tmp_path: Path, name: str) -> None:
    source = shared_data / "stories260K"
    convert(source / name, tmp_path / "folder", tokenizer=source / "tok512.bin")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    written = model.generate(torch.tensor([[tokenizer.bos_token_id]]), do_sample=False, max_new_tokens=256)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == story


def test_the_story_here(shared_data: Path, story: str) -> None:
    source = shared_data / "stories260K"
    tokenizer = load_tokenizer(source / "tok512.bin")
    written = write_left_to_right(load_model(source / "stories260K.bin"), [[1]], max_new_tokens=256).written[0]
    assert tokenizer.decode(written) == story


def test_stories260k_has_the_same_logits_in_transformers(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "stories260K" / "stories260K.v1.bin"
    convert(source, tmp_path / "folder")
    ours = load_model(source)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    token_ids = torch.randint(512, (2, 100))
    with torch.no_grad():
        expected = theirs(token_ids).logits
        torch.testing.assert_close(ours(token_ids).logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
