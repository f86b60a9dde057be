"""Folders that transformers' methods write and read, and weights that begin, are tied and change their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

import anyorder
from anyorder import AnyOrderConfig, AnyOrderForCausalLM
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.model.norm import RMSNorm
from anyorder.model.rope import DynamicRotary
from tests.huggingface.twins import SHAPE, assert_close, batch, face_of, llama, twins

NOT_A_LLAMA: dict[str, Any] = {
    "layers": (LayerKind(chunk=4), LayerKind(rotary=False)),
    "rotary": DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=8),
    "qk_norm": "weightless",
}


@pytest.fixture(params=["plain", "tied", "no Llama"])
def face(request: pytest.FixtureRequest, tiny_config: ModelConfig) -> AnyOrderForCausalLM:
    changes = {"plain": {}, "tied": {"tie_word_embeddings": True}, "no Llama": NOT_A_LLAMA}[request.param]
    return AnyOrderForCausalLM(AnyOrderConfig(backbone=tiny_config.replace(**changes))).eval()


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    weights = expected.state_dict()
    assert found.state_dict().keys() == weights.keys()
    for name, weight in found.state_dict().items():
        assert torch.equal(weight, weights[name]), name


# ------------------------------------------------------------------------------------------------ save and load


@torch.no_grad()
def test_round_trip(face: AnyOrderForCausalLM, tmp_path: Path) -> None:
    face.save_pretrained(tmp_path)
    again, info = AnyOrderForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.backbone == face.config.backbone
    assert not again.training
    assert_same(again, face)
    ids, mask = batch(9, 4)
    # Loading goes by way of PyTorch's meta device, which must leave nothing of it behind.
    assert torch.equal(again(ids, attention_mask=mask).logits, face(ids, attention_mask=mask).logits)


def test_auto_model(face: AnyOrderForCausalLM, tmp_path: Path) -> None:
    face.save_pretrained(tmp_path)
    native = json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    auto: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(auto) is (LlamaForCausalLM if native else AnyOrderForCausalLM)
    assert_same(auto, face)


def test_the_same_folder_as_anyorder_writes(face: AnyOrderForCausalLM, tmp_path: Path) -> None:
    face.save_pretrained(tmp_path / "theirs")
    anyorder.save(face, None, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    for name in ("theirs", "ours"):
        network, _ = anyorder.load(tmp_path / name)
        assert network.config == face.config.backbone
        assert_same(network, face)
        assert_same(AnyOrderForCausalLM.from_pretrained(tmp_path / name), face)


def test_shards(face: AnyOrderForCausalLM, tmp_path: Path) -> None:
    face.save_pretrained(tmp_path, max_shard_size="50kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(AnyOrderForCausalLM.from_pretrained(tmp_path), face)
    assert_same(anyorder.load(tmp_path)[0], face)


@torch.no_grad()
def test_folders_of_transformers(tmp_path: Path) -> None:
    for theirs in (llama(), MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)).eval()):
        folder = tmp_path / theirs.config.model_type
        theirs.save_pretrained(folder)
        ours = AnyOrderForCausalLM.from_pretrained(folder)
        ids, _ = batch(9)
        assert_close(ours(ids).logits, theirs(ids).logits)
        ours.save_pretrained(folder / "again")
        assert type(AutoModelForCausalLM.from_pretrained(folder / "again")) is type(theirs)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_dtypes(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    twins()[0].to(dtype).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == name
    assert AnyOrderForCausalLM.from_pretrained(tmp_path).dtype == dtype
    assert AnyOrderForCausalLM.from_pretrained(tmp_path, dtype="float32").dtype == torch.float32
    assert AnyOrderForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).config.dtype == torch.bfloat16


def test_devices_and_attention_are_options(tmp_path: Path) -> None:
    face, _ = twins()
    face.save_pretrained(tmp_path)
    loaded = AnyOrderForCausalLM.from_pretrained(tmp_path, device_map="cpu", attn_implementation="eager")
    assert loaded.device == torch.device("cpu")
    assert loaded.backend == "eager"
    assert_same(loaded, face)


def test_generation_config_says_what_ends_a_text(tmp_path: Path) -> None:
    theirs = llama()
    theirs.generation_config.eos_token_id = [2, 7]
    theirs.save_pretrained(tmp_path)
    ours = AnyOrderForCausalLM.from_pretrained(tmp_path)
    assert ours.generation_config.eos_token_id == [2, 7]
    assert ours.config.eos_token_ids == anyorder.load(tmp_path)[0].config.eos_token_ids == (2, 7)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="model_type is 'gpt2'"):
        AnyOrderForCausalLM.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------ initialisation


def test_weights_begin_as_those_of_transformers() -> None:
    """From the same seed even equal ones, since the modules stand in the same order."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.05, "mlp_bias": True}
    theirs: PreTrainedModel = llama(**shape)
    config = face_of(theirs).config
    for face in (
        AnyOrderForCausalLM(config),
        AutoModelForCausalLM.from_config(config),
        AnyOrderForCausalLM.of(Llama(config.backbone)),
    ):
        for name, parameter in face.named_parameters():
            expected = theirs.get_parameter(name)
            assert parameter.std().item() == pytest.approx(expected.std().item(), rel=0.1, abs=1e-6), name
            assert parameter.mean().item() == pytest.approx(expected.mean().item(), abs=2e-3), name


def test_from_config_takes_a_dtype(tiny_config: ModelConfig) -> None:
    face = AutoModelForCausalLM.from_config(AnyOrderConfig(backbone=tiny_config), dtype=torch.bfloat16)
    assert isinstance(face, AnyOrderForCausalLM)
    assert face.dtype == torch.bfloat16


def test_missing_weights_are_drawn(tmp_path: Path) -> None:
    face, _ = twins()
    face.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}
    kept = {name: weight for name, weight in weights.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = AnyOrderForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing
    drawn = loaded.get_parameter("model.layers.1.mlp.up_proj.weight")
    assert drawn.std().item() == pytest.approx(0.3, rel=0.1)
    assert (loaded.get_parameter("model.norm.weight") == 1).all()
    assert torch.equal(loaded.lm_head.weight, face.lm_head.weight)


def test_init_weights_touches_all(tiny_config: ModelConfig) -> None:
    face = AnyOrderForCausalLM(AnyOrderConfig(backbone=tiny_config.replace(attention_bias=True, mlp_bias=True)))
    for module in face.modules():
        for parameter in module.parameters(recurse=False):
            torch.nn.init.constant_(parameter, 7.0)
        face._init_weights(module)
    for name, parameter in face.named_parameters():
        assert not (parameter == 7).any(), name
    assert all((norm.weight == 1).all() for norm in face.modules() if isinstance(norm, RMSNorm))


# ------------------------------------------------------------------------------------------------ tied weights


def test_tied_weights() -> None:
    face, theirs = twins(tie_word_embeddings=True)
    assert face.all_tied_weights_keys == theirs.all_tied_weights_keys
    assert face.lm_head.weight is face.model.embed_tokens.weight
    face.tie_weights()
    assert face.lm_head.weight is face.model.embed_tokens.weight
    assert face.num_parameters() == theirs.num_parameters()
    free, _ = twins()
    free.tie_weights()
    assert free.lm_head.weight is not free.model.embed_tokens.weight
    assert free.all_tied_weights_keys == {}


def test_tied_weights_after_loading(tmp_path: Path) -> None:
    face, _ = twins(tie_word_embeddings=True)
    face.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = AnyOrderForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_rounded_weights_are_neither_tied_again_nor_saved(tied: bool, tmp_path: Path) -> None:
    face = AnyOrderForCausalLM.of(to_int8(twins(tie_word_embeddings=tied)[0]))
    ids, _ = batch(9)
    expected = face(ids).logits
    face.tie_weights()
    assert torch.equal(face(ids).logits, expected)
    with pytest.raises(UserError, match=r"weights are int8, .*: save it as it was loaded before"):
        face.save_pretrained(tmp_path / "face")
    assert not (tmp_path / "face").exists()


# ------------------------------------------------------------------------------------------------ more tokens


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("tokens", [100, 90], ids=["more", "fewer"])
@torch.no_grad()
def test_resized_embeddings(tied: bool, tokens: int, tmp_path: Path) -> None:
    face, theirs = twins(tie_word_embeddings=tied)
    before, head = face.model.embed_tokens.weight.clone(), face.lm_head.weight.clone()
    for model in (face, theirs):
        torch.manual_seed(0)
        model.resize_token_embeddings(tokens)
    kept = min(tokens, 96)
    assert face.config.vocab_size == face.config.backbone.vocab_size == tokens
    assert face.get_input_embeddings() is face.model.embed_tokens
    assert face.get_output_embeddings() is face.lm_head
    assert face.model.embed_tokens.weight.shape == face.lm_head.weight.shape == (tokens, 32)
    assert torch.equal(face.model.embed_tokens.weight[:kept], before[:kept])
    assert torch.equal(face.lm_head.weight[:kept], head[:kept])
    assert (face.lm_head.weight is face.model.embed_tokens.weight) == tied
    assert_same(face, theirs)
    ids = torch.randint(3, tokens, (2, 7))
    assert_close(face(ids).logits, theirs(ids).logits)
    assert anyorder.generate(face, None, [5, 6], max_new_tokens=3, use_cache=False).passes
    face.save_pretrained(tmp_path)
    assert_same(AnyOrderForCausalLM.from_pretrained(tmp_path), face)


def test_embeddings_resized_to_a_multiple() -> None:
    face, _ = twins()
    face.resize_token_embeddings(pad_to_multiple_of=64)
    assert face.config.vocab_size == 128


def test_embeddings_can_be_put() -> None:
    face, _ = twins()
    embeddings, head = torch.nn.Embedding(96, 32), torch.nn.Linear(32, 96, bias=False)
    face.set_input_embeddings(embeddings)
    face.set_output_embeddings(head)
    assert face.model.embed_tokens is embeddings
    assert face.lm_head is head
