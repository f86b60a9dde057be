"""`AnyOrderConfig`: a `ModelConfig` that transformers' tools can read, change and write."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoConfig, LlamaConfig, MistralConfig, PreTrainedTokenizerFast
from transformers.trainer_utils import align_special_tokens

import anyorder
from anyorder import AnyOrderConfig, AnyOrderForCausalLM
from anyorder.checkpoints import read_checkpoint, save_model
from anyorder.checkpoints.config_json import config_from_json
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import DynamicRotary, Llama3Rotary, Rotary, YarnRotary
from anyorder.model.vision import VisionConfig
from tests.huggingface.twins import SHAPE
from tests.model.networks import EXPERTS, network

DIFFUSION = diffusion(5)

CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "every field": {
        "num_key_value_heads": 1, "head_dim": 10, "max_position_embeddings": 77, "rms_norm_eps": 1e-3,
        "layers": (
            LayerKind(window=3, experts=True),
            LayerKind(rotary=False, chunk=4, query_scale=QueryScale(strength=0.1, period=4)),
        ), "experts": EXPERTS, "attention": "MQA", "attention_bias": True,
        "attention_output_bias": True, "qk_norm": "weightless", "mlp_bias": True, "tie_word_embeddings": True,
        "initializer_range": 0.1, "bos_token_id": 1, "eos_token_ids": (2, 3), "pad_token_id": 4,
        "modes": (LEFT_TO_RIGHT, ANY_ORDER, blocks(5, 4)), "default_mode": "any-order",
        "vision": VisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, output_size=24,
            image_size=56, max_tiles=3, image_token_id=7,
        ),
    },
    "yarn": {"rotary": YarnRotary(theta=1e4, factor=4.0, original_max_position_embeddings=16, mscale=0.7)},
    "dynamic": {"rotary": DynamicRotary(theta=1e4, factor=4.0, original_max_position_embeddings=16)},
    "float32 angles": {"rotary": Rotary(theta=1e4, float32_angles=True), "layers": (LayerKind(window=9),) * 2},
}  # fmt: skip


@pytest.fixture(params=CHANGES)
def backbone(request: pytest.FixtureRequest, tiny_config: ModelConfig) -> ModelConfig:
    return tiny_config.replace(**CHANGES[request.param])


def test_every_field_was_changed() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    changed = CHANGES["every field"]
    of_shape = {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rotary",
    }  # fmt: skip
    assert set(changed) | of_shape == set(fields)
    assert [name for name in changed if changed[name] == fields[name]] == []


def test_json_and_back(backbone: ModelConfig) -> None:
    config = AnyOrderConfig(backbone=backbone)
    fields = json.loads(json.dumps(config.to_dict()))
    assert AnyOrderConfig(**fields).backbone == backbone
    assert AnyOrderConfig.from_dict(fields).backbone == backbone
    assert json.loads(config.to_json_string())["layers"] == fields["layers"]


def test_folder_and_back(backbone: ModelConfig, tmp_path: Path) -> None:
    AnyOrderConfig(backbone=backbone).save_pretrained(tmp_path)
    exact = backbone
    if json.loads((tmp_path / "config.json").read_text())["model_type"] != "anyorder":
        # In which precision angles are computed is no part of transformers' networks.
        exact = backbone.replace(rotary=dataclasses.replace(backbone.rotary, float32_angles=False))
    assert AnyOrderConfig.from_pretrained(tmp_path).backbone == exact
    assert AnyOrderConfig.from_pretrained(tmp_path / "config.json").backbone == exact


def test_what_anyorder_writes(backbone: ModelConfig, tmp_path: Path) -> None:
    save_model(Llama(backbone), tmp_path / "ours")
    assert AnyOrderConfig.from_pretrained(tmp_path / "ours").backbone == read_checkpoint(tmp_path / "ours").config
    config = AnyOrderConfig(backbone=backbone, dtype="float32")
    config.save_pretrained(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
    del ours["torch_dtype"], theirs["transformers_version"]
    assert ours == theirs


def test_fields_are_read_through(backbone: ModelConfig) -> None:
    config = AnyOrderConfig(backbone=backbone)
    for field in dataclasses.fields(ModelConfig):
        assert getattr(config, field.name) == getattr(backbone, field.name)
    assert config.context_length == backbone.context_length
    assert config.head_layout == backbone.head_layout
    with pytest.raises(AttributeError, match="no attribute 'sliding_window'"):
        config.sliding_window  # noqa: B018


def test_from_fields(backbone: ModelConfig) -> None:
    fields = {field.name: getattr(backbone, field.name) for field in dataclasses.fields(ModelConfig)}
    assert AnyOrderConfig(**fields).backbone == backbone
    assert AnyOrderConfig(backbone=backbone, vocab_size=200).backbone == backbone.replace(vocab_size=200)


def test_copies_are_equal_and_others_are_not(backbone: ModelConfig) -> None:
    config = AnyOrderConfig(backbone=backbone)
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):  # noqa: S301 (just written)
        assert copied == config
        assert copied.backbone == backbone
    assert AnyOrderConfig(backbone=backbone.replace(vocab_size=200)) != config


def test_fields_can_be_set_and_are_checked(tiny_config: ModelConfig) -> None:
    config = AnyOrderConfig(backbone=tiny_config)
    config.vocab_size = 200
    assert config.backbone == tiny_config.replace(vocab_size=200)
    with pytest.raises(UserError, match="'vocab_size' is -1: give a whole number above 0"):
        config.vocab_size = -1
    with pytest.raises(UserError, match=r"'layers' is .*: give one kind for each of the 3 layers"):
        config.num_hidden_layers = 3
    assert config.backbone == tiny_config.replace(vocab_size=200)


@pytest.mark.parametrize(("eos", "ours"), [(None, ()), (2, (2,)), ([2, 3], (2, 3))], ids=["none", "one", "several"])
def test_end_tokens_have_transformers_name_too(
    tiny_config: ModelConfig, eos: int | list[int] | None, ours: tuple[int, ...]
) -> None:
    config = AnyOrderConfig(backbone=tiny_config.replace(eos_token_ids=ours))
    assert config.eos_token_id == eos
    config.eos_token_id = 7
    assert config.backbone.eos_token_ids == (7,)
    config.eos_token_id = eos
    assert config.backbone.eos_token_ids == ours


def test_folders_of_transformers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LlamaConfig(**SHAPE).save_pretrained(tmp_path / "llama")
    config = AnyOrderConfig.from_pretrained(tmp_path / "llama", vocab_size=50)
    assert (config.vocab_size, config.eos_token_ids, config.rotary) == (50, (2,), Rotary(theta=500.0))
    assert "model of type" not in caplog.text
    MistralConfig(**SHAPE, sliding_window=5).save_pretrained(tmp_path / "mistral")
    assert AnyOrderConfig.from_pretrained(tmp_path / "mistral").layers == (LayerKind(window=5),) * 3


def test_auto_config(tmp_path: Path, tiny_config: ModelConfig) -> None:
    backbone = tiny_config.replace(layers=(LayerKind(chunk=4), LayerKind(rotary=False)))
    AnyOrderConfig(backbone=backbone).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, AnyOrderConfig)
    assert config.backbone == backbone


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "rope_theta is missing"),
        ({"rotary": {"rope_theta": 1e4}}, "field 'vocab_size' is missing: add it"),
        ({**SHAPE, "rotary": {"rope_theta": 1e4}, "head_dim": 3}, "'head_dim' is 3: .* give an even number"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AnyOrderConfig(**fields)


def test_folders_of_other_networks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type is 'bert': this version reads 'llama'"):
        AnyOrderConfig.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------ modes


def test_networks_write_from_left_to_right_unless_they_say_otherwise(tiny_config: ModelConfig) -> None:
    config = AnyOrderConfig(backbone=tiny_config)
    assert (config.modes, config.default_mode) == ((LEFT_TO_RIGHT,), "left-to-right")


def test_ways_come_back(tiny_config: ModelConfig, tmp_path: Path) -> None:
    config = AnyOrderConfig(backbone=tiny_config, modes=(DIFFUSION, LEFT_TO_RIGHT))
    assert config.default_mode == "diffusion"
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert (again.modes, again.default_mode) == ((DIFFUSION, LEFT_TO_RIGHT), "diffusion")
    # No other reader may take it for a plain Llama, which it would read as one.
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "anyorder"
    assert config_from_json(json.loads((tmp_path / "config.json").read_text())) == again.backbone


@pytest.mark.parametrize(
    ("modes", "default", "message"),
    [
        ((), "", "default_mode is '': give one of the modes"),
        ((DIFFUSION,), "left-to-right", r"default_mode is 'left-to-right': give one of the modes, which are \['diffus"),
        ((DIFFUSION, DIFFUSION), "", r"modes is \['diffusion', 'diffusion'\]: give each mode once"),
    ],
)
def test_ways_that_are_refused(tiny_config: ModelConfig, modes: tuple[Mode, ...], default: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AnyOrderConfig(backbone=tiny_config, modes=modes, default_mode=default)


# ------------------------------------------------------------------------------------------------ every way of copying

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "special tokens": {"bos_token_id": 1, "eos_token_ids": (2, 7), "pad_token_id": 0},
    "one end": {"eos_token_ids": (2,)},
    "several modes": {"modes": (ANY_ORDER, diffusion(20)), "default_mode": "diffusion", "eos_token_ids": (2, 7)},
    "blocks": {"modes": (blocks(20, 4, shifted=True),)},
    "window": {"layers": (LayerKind(window=8),) * 3},
    "kinds of layers": {"layers": (LayerKind(chunk=4), LayerKind(rotary=False), LayerKind()), "qk_norm": "weightless"},
    "norms": {"qk_norm": "learned"},
    "biases": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "yarn": {"rotary": YarnRotary(theta=1e4, factor=4.0, original_max_position_embeddings=16)},
    "llama3": {"rotary": Llama3Rotary(
        theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64,
    )},
    "dynamic": {"rotary": DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=32)},
}  # fmt: skip

COPIES: dict[str, Callable[[AnyOrderConfig, Path], AnyOrderConfig]] = {
    "copy": lambda config, file: copy.copy(config),
    "deepcopy": lambda config, file: copy.deepcopy(config),
    "pickle": lambda config, file: pickle.loads(pickle.dumps(config)),  # noqa: S301
    "arguments": lambda config, file: AnyOrderConfig(**config.to_dict()),
    "to_dict": lambda config, file: AnyOrderConfig.from_dict(config.to_dict()),
    "to_diff_dict": lambda config, file: AnyOrderConfig.from_dict(config.to_diff_dict()),
    "to_json_string": lambda config, file: AnyOrderConfig.from_dict(json.loads(config.to_json_string())),
    "whole string": lambda config, file: AnyOrderConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
    "to_json_file": lambda config, file: _through_file(config, file, use_diff=True),
    "whole file": lambda config, file: _through_file(config, file, use_diff=False),
    "folder": lambda config, file: _through_folder(config, file, AnyOrderConfig),
    "auto": lambda config, file: _through_folder(config, file, AutoConfig),
}  # fmt: skip


def _through_file(config: AnyOrderConfig, file: Path, use_diff: bool) -> Any:
    config.to_json_file(file, use_diff=use_diff)
    return AnyOrderConfig.from_json_file(file)


def _through_folder(config: AnyOrderConfig, folder: Path, reader: Any) -> Any:
    """`AutoConfig` reads a configuration of transformers' own where it can."""
    config.save_pretrained(folder)
    found = reader.from_pretrained(folder)
    return found if isinstance(found, AnyOrderConfig) else AnyOrderConfig.from_dict(found.to_dict())


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_says_the_same(kind: str, copies: str, tiny_config: ModelConfig, tmp_path: Path) -> None:
    backbone = tiny_config.replace(num_hidden_layers=3, layers=(LayerKind(),) * 3).replace(**KINDS[kind])
    config = AnyOrderConfig(backbone=backbone, use_cache=False, output_hidden_states=True, dtype="bfloat16")
    again = COPIES[copies](config, tmp_path / "config")
    assert type(again) is AnyOrderConfig
    assert again.backbone == backbone
    for name in ("use_cache", "output_hidden_states", "return_dict", "eos_token_id", "vocab_size", "default_mode"):
        assert getattr(again, name) == getattr(config, name), name
    assert str(again.dtype).removeprefix("torch.") == "bfloat16"


def test_end_tokens_that_disagree_are_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    config = AnyOrderConfig(backbone=tiny_config.replace(modes=(diffusion(20),), eos_token_ids=(2, 7)))
    config.to_json_file(tmp_path / "config.json")
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["eos_token_id"] == fields["eos_token_ids"] == [2, 7]
    for lacking in ("eos_token_id", "eos_token_ids"):  # either will do
        (tmp_path / "config.json").write_text(json.dumps({n: v for n, v in fields.items() if n != lacking}))
        assert AnyOrderConfig.from_pretrained(tmp_path).eos_token_ids == (2, 7)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"eos_token_id": 3}))
    with pytest.raises(
        UserError, match=r"eos_token_id is 3, but eos_token_ids is \[2, 7\]: keep the one that is right"
    ):
        AnyOrderConfig.from_pretrained(tmp_path)


def test_trainers_alignment_loses_no_end_token(tmp_path: Path) -> None:
    """Up to some version it sets the tokenizer's end token alone where that is one of several."""
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "d": 3}, "a")))
    plain = network(eos_token_ids=(1, 2), bos_token_id=0, pad_token_id=0)
    for eos, expected in (("b", {1, 2}), ("c", {1, 2})):
        face = AnyOrderForCausalLM.of(plain)
        face.generation_config.eos_token_id = [1, 2]
        words.bos_token, words.eos_token, words.pad_token = "a", eos, "a"
        align_special_tokens(face, words)
        assert set(face.config.eos_token_ids) == expected
        anyorder.save(face, words, tmp_path / eos / "saved")
        assert set(anyorder.load(tmp_path / eos / "saved")[0].config.eos_token_ids) == expected
        face.save_pretrained(tmp_path / eos / "its own")
        assert set(AnyOrderForCausalLM.from_pretrained(tmp_path / eos / "its own").config.eos_token_ids) == expected


def test_one_end_token_is_replaced_by_another_and_several_by_a_list() -> None:
    config = AnyOrderConfig(backbone=network(eos_token_ids=(1,)).config)
    settings: list[Any] = [2, [1, 2], 2, 3, None]
    found = []
    for eos in settings:
        config.eos_token_id = eos
        found.append(config.eos_token_ids)
    assert found == [(2,), (1, 2), (2, 1), (3,), ()]
