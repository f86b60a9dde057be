"""Masked diffusion models that are published under their architecture's own names: iLLaDA, A2D, Fast-dLLM v2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import anyorder
import anyorder.huggingface  # makes the Auto classes know its own
from anyorder.checkpoints import load_model, save_model
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import Mode, blocks, diffusion
from anyorder.visibility import bidirectional, not_after

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

NATIVE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True},
    ),
}

PUBLISHED: dict[str, tuple[str, dict[str, Any], Mode]] = {
    "illada": ("llama", {"model_type": "illada", "architectures": ["ILLaDAForCausalLM"]}, diffusion(5)),
    "illada, a mask named": (
        "llama", {"model_type": "illada", "architectures": ["ILLaDAForCausalLM"], "mask_token_id": 9}, diffusion(9),
    ),
    "illada as llada": ("llama", {"model_type": "llada", "architectures": ["LLaDAModelLM"]}, diffusion(5)),
    "a2d-llama": (
        "llama", {"model_type": "a2d-llama", "architectures": ["A2DLlamaLMHeadModel"], "mask_token_id": 7},
        diffusion(7),
    ),
    "a2d-qwen2": (
        "qwen2", {"model_type": "a2d-qwen2", "architectures": ["A2DQwen2LMHeadModel"], "mask_token_id": 7},
        diffusion(7),
    ),
    "a2d-qwen3": (
        "qwen3", {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "mask_token_id": 7},
        diffusion(7),
    ),
    "a2d-qwen3, by blocks": (
        "qwen3",
        {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "mask_token_id": 7, "block_size": 4},
        blocks(7, 4),
    ),
    "sdar": (
        "qwen3", {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "mask_token_id": 7}, blocks(7, 4),
    ),
    "sdar-moe": (
        "qwen3_moe", {"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"], "mask_token_id": 7},
        blocks(7, 4),
    ),
    "fast-dllm-v2": (
        "qwen2",
        {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "mask_token_id": 7},
        blocks(7, 32, shifted=True),
    ),
    "fast-dllm-v2, small blocks": (
        "qwen2",
        {
            "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "mask_token_id": 7,
            "bd_size": 4,
        },
        blocks(7, 4, shifted=True),
    ),
}  # fmt: skip


def twin_of(native: str, **changes: Any) -> PreTrainedModel:
    """transformers' network with random weights, biases and norms too."""
    config, network, more = NATIVE[native]
    twin = network(config(**{**SIZES, **more, **changes}))
    for name, parameter in twin.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return twin.eval()


def publish(twin: PreTrainedModel, folder: Path, fields: dict[str, Any]) -> None:
    """Writes the folder with these fields of config.json instead of transformers'."""
    twin.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    old_form = {"rope_theta": config.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(config | old_form | fields))


@torch.no_grad()
def their_logits(twin: PreTrainedModel, ids: Tensor, block_length: int) -> Tensor:
    """Of transformers' network, where each block of tokens sees itself and those before it."""
    block = torch.arange(ids.shape[1]) // block_length
    seen = (block[:, None] >= block[None, :]).expand(len(ids), 1, -1, -1)
    twin.set_attn_implementation("sdpa")
    return twin(ids, attention_mask=seen, use_cache=False).logits


@torch.no_grad()
def our_logits(network: Llama, ids: Tensor) -> Tensor:
    (mode,) = network.config.modes
    position = torch.arange(ids.shape[1]).expand_as(ids)
    labels = {"position": position, "block": position // (mode.block_length or ids.shape[1])}
    visibility = bidirectional() if mode.block_length is None else not_after("block")
    return network.logits(network.hidden(ids, network.prepare(visibility, labels)))


def assert_equal_networks(a: Llama, b: Llama) -> None:
    assert a.config == b.config
    for name, weight in a.state_dict().items():
        assert torch.equal(weight, b.state_dict()[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_folders_are_read_and_kept(name: str, tied: bool, tmp_path: Path) -> None:
    native, fields, mode = PUBLISHED[name]
    twin = twin_of(native, tie_word_embeddings=tied)
    publish(twin, tmp_path / "published", fields)
    network, _ = anyorder.load(tmp_path / "published", device="cpu")
    assert network.config.modes == (mode,)
    assert network.config.tie_word_embeddings == tied
    ids = torch.randint(SIZES["vocab_size"], (2, 10))
    expected = their_logits(twin, ids, mode.block_length or 10)
    assert (our_logits(network, ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    # Saved as ours, and in the published form.
    save_model(network, tmp_path / "ours")
    assert_equal_networks(load_model(tmp_path / "ours", device="cpu"), network)
    form = {"illada as llada": "illada"}.get(name, name.split(",")[0])
    save_model(network, tmp_path / "back", form=form)
    assert_equal_networks(load_model(tmp_path / "back", device="cpu"), network)
    names = {file: set(load_file(tmp_path / file / "model.safetensors")) for file in ("published", "back")}
    assert names["published"] == names["back"]


def test_illada_writes(tmp_path: Path) -> None:
    publish(twin_of("llama"), tmp_path, PUBLISHED["illada"][1])
    network, _ = anyorder.load(tmp_path, device="cpu")
    written = anyorder.generate(network, None, [1, 8, 9], order="diffusion", max_new_tokens=6)
    assert len(written.token_ids) <= 6
    assert all(0 <= token_id < 64 for token_id in written.token_ids)


TOKENIZERS: dict[str, dict[str, Any]] = {
    "named and listed": {
        "tokenizer_config.json": {
            "mask_token": "<|mask|>", "added_tokens_decoder": {"6": {"content": "<pad>"}, "7": {"content": "<|mask|>"}},
        }
    },
    "in generation_config.json": {"generation_config.json": {"mask_token_id": 7, "eos_token_id": 2}},
    "an object": {
        "special_tokens_map.json": {"mask_token": {"content": "<|mask|>", "lstrip": False}},
        "added_tokens.json": {"<|mask|>": 7},
    },
    "listed in tokenizer.json": {
        "tokenizer_config.json": {"mask_token": "<|mask|>"},
        "tokenizer.json": {"added_tokens": [{"id": 7, "content": "<|mask|>", "special": True}]},
    },
}  # fmt: skip


@pytest.mark.parametrize("form", TOKENIZERS)
def test_the_mask_token_is_the_tokenizers(form: str, tmp_path: Path) -> None:
    fields = {**PUBLISHED["a2d-qwen3"][1], "mask_token_id": None}
    publish(twin_of("qwen3"), tmp_path, fields)
    with pytest.raises(UserError, match="mask_token_id is None: add the id of the mask token, a whole number"):
        load_model(tmp_path, device="cpu")
    for name, content in TOKENIZERS[form].items():
        (tmp_path / name).write_text(json.dumps(content))
    assert load_model(tmp_path, device="cpu").config.modes == (diffusion(7),)


def test_generation_config_names_another_mask_than_the_usual(tmp_path: Path) -> None:
    publish(twin_of("llama"), tmp_path, PUBLISHED["illada"][1])
    assert load_model(tmp_path, device="cpu").config.modes == (diffusion(5),)
    (tmp_path / "generation_config.json").write_text(json.dumps({"mask_token_id": 7}))
    assert load_model(tmp_path, device="cpu").config.modes == (diffusion(7),)


def test_a_conversion_with_a_head_of_its_own_beside_a_tied_configuration(tmp_path: Path) -> None:
    twin = twin_of("qwen2", tie_word_embeddings=False)
    publish(twin, tmp_path, {**PUBLISHED["a2d-qwen2"][1], "tie_word_embeddings": True})
    network = load_model(tmp_path, device="cpu")
    assert not network.config.tie_word_embeddings
    assert torch.equal(network.lm_head.weight, twin.lm_head.weight)
    # A configuration of any other kind is believed.
    publish(twin, tmp_path, {**PUBLISHED["fast-dllm-v2"][1], "tie_word_embeddings": True})
    with pytest.raises(UserError, match="differ, but the configuration ties them: set tie_word_embeddings to false"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("pad_token_id", [-1, 64, 10**9])
@pytest.mark.parametrize("name", ["llama", "illada", "fast-dllm-v2"])
def test_padding_beyond_the_vocabulary(name: str, pad_token_id: int, tmp_path: Path) -> None:
    native, fields, _ = PUBLISHED.get(name, ("llama", {}, None))
    publish(twin_of(native), tmp_path / "published", fields | {"pad_token_id": pad_token_id})
    network = load_model(tmp_path / "published", device="cpu")
    assert network.config.pad_token_id == pad_token_id
    save_model(network, tmp_path / "saved")
    assert_equal_networks(load_model(tmp_path / "saved", device="cpu"), network)


@pytest.mark.parametrize("name", ["llama", "illada"])
@pytest.mark.parametrize("eos", [64, [2, 10**6], -1])
def test_end_tokens_beyond_the_vocabulary_end_nothing(
    name: str, eos: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    native, fields, mode = PUBLISHED.get(name, ("llama", {}, None))
    publish(twin_of(native), tmp_path / "published", fields | {"eos_token_id": eos, "bos_token_id": 99})
    (tmp_path / "published" / "generation_config.json").unlink(missing_ok=True)
    network = load_model(tmp_path / "published", device="cpu")
    assert network.config.eos_token_ids == ((2,) if isinstance(eos, list) else ())
    assert network.config.bos_token_id is None
    assert "are not among the network's 64 tokens" in caplog.text
    order = "left-to-right" if mode is None else "diffusion"
    assert anyorder.generate(network, None, [1, 8], order=order, max_new_tokens=4).token_ids
    with pytest.raises(UserError, match=r"configuration field 'eos_token_ids' is \(64,\): give ids from 0 to 63"):
        network.config.replace(eos_token_ids=(64,))


def test_what_is_no_such_model(tmp_path: Path) -> None:
    twin = twin_of("llama")
    for fields, message in (
        ({"model_type": "illada", "architectures": ["LLaDAMoEModelLM"]}, r"architectures is \['LLaDAMoEModelLM'\]"),
        ({"model_type": "illada", "mask_token_id": 64}, "mask_token_id is 64: give an id from 0 to 63"),
        ({"model_type": "illada", "mask_token_id": 2}, "mask_token_id is 2, which is eos_token_id too"),
        ({"model_type": "illada", "mask_token_id": "5"}, "mask_token_id is '5': add the id of the mask token"),
        ({"model_type": "Fast_dLLM_Qwen", "mask_token_id": 5, "bd_size": 0}, "block_length is 0 for the mode 'blocks'"),
        ({"model_type": "Fast_dLLM_Qwen", "mask_token_id": 5, "bd_size": "8"}, "block_length is '8'.*: give a"),
    ):  # fmt: skip
        publish(twin, tmp_path, {"architectures": None} | fields)
        with pytest.raises(UserError, match=message):
            load_model(tmp_path, device="cpu")


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    publish(twin_of("llama"), tmp_path, {})
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lacks tensors"):
        load_model(tmp_path, device="cpu")
    with pytest.raises(UserError, match="holds no tensor: fetch the weights again"):
        _ = anyorder.checkpoints.read_checkpoint(tmp_path).dtype


@pytest.mark.parametrize("name", ["illada", "a2d-qwen3", "fast-dllm-v2, small blocks"])
def test_transformers_auto_classes_find_them(name: str, tmp_path: Path) -> None:
    native, fields, mode = PUBLISHED[name]
    publish(twin_of(native, tie_word_embeddings=False), tmp_path, {**fields, "mask_token_id": None, "vocab_size": 64})
    mask = "<|mask|>"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"mask_token": mask, "added_tokens_decoder": {str(mode.mask_token_id): {"content": mask}}})
    )
    if name.startswith("fast"):  # whose mask token is fixed in its code, but not in this vocabulary
        with pytest.raises(UserError, match="mask_token_id is 151665: give an id from 0 to 63"):
            AutoConfig.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(
            json.dumps(json.loads((tmp_path / "config.json").read_text()) | {"mask_id": mode.mask_token_id})
        )
    assert AutoConfig.from_pretrained(tmp_path).modes == (mode,)
    if mode.name == "blocks":
        return
    loaded = anyorder.LLaDAForMaskedLM.from_pretrained(tmp_path)
    ids = torch.randint(64, (1, 8))
    ours = our_logits(load_model(tmp_path, device="cpu"), ids)
    with torch.no_grad():
        assert (loaded(ids).logits - ours).abs().max() < 1e-6
