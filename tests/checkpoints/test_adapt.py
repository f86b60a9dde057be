"""Further modes for a network: what is shared, what is drawn, what comes back from disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import anyorder
from anyorder.checkpoints import load_model, save_model
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion


def test_the_backbone_is_shared_and_query_rows_are_drawn(tiny_config: ModelConfig) -> None:
    model = Llama(tiny_config)
    assert model.query_rows is None
    adapted = adapt(model, (LEFT_TO_RIGHT, ANY_ORDER))
    assert adapted.query_rows is not None
    for name, parameter in model.named_parameters():
        assert adapted.get_parameter(name) is parameter
    new = {name for name, _ in adapted.named_parameters()} - {name for name, _ in model.named_parameters()}
    assert new == {"query_rows.start.weight", "query_rows.position.weight"}
    for name in new:
        assert adapted.get_parameter(name).std() > 0.5 * tiny_config.initializer_range
        assert torch.equal(adapt(model, (ANY_ORDER,), seed=0).get_parameter(name), adapted.get_parameter(name))
        assert not torch.equal(adapt(model, (ANY_ORDER,), seed=1).get_parameter(name), adapted.get_parameter(name))
    ids = torch.randint(tiny_config.vocab_size, (2, 9))
    assert torch.equal(adapted(ids).logits, model(ids).logits)


def test_query_rows_that_there_are_stay(tiny_config: ModelConfig) -> None:
    model = adapt(Llama(tiny_config), (ANY_ORDER,))
    again = adapt(model, (LEFT_TO_RIGHT, ANY_ORDER, diffusion(5)), default_mode="diffusion")
    assert again.config.default_mode == "diffusion"
    assert all(again.get_parameter(name) is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_networks_of_every_way_come_back(tiny_config: ModelConfig, tmp_path: Path, tied: bool) -> None:
    model = Llama(tiny_config.replace(tie_word_embeddings=tied))
    adapted = adapt(model, (ANY_ORDER, LEFT_TO_RIGHT, diffusion(5, shifted=True), blocks(5, 4)))
    save_model(adapted, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config == adapted.config
    for name, parameter in adapted.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    face = anyorder.AnyOrderForCausalLM.from_pretrained(tmp_path / "ours")
    assert face.config.modes == adapted.config.modes
    name = "query_rows.start.weight"
    assert torch.equal(face.get_parameter(name), adapted.get_parameter(name))
    assert anyorder.AnyOrderForCausalLM.of(adapted).query_rows is adapted.query_rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": (diffusion(128),)}, r"mask_token_id is 128: give an id from 0 to 127\."),
        ({"modes": (diffusion(1),), "bos_token_id": 1}, "mask_token_id is 1, which is bos_token_id too: give a token"),
        ({"modes": (diffusion(2),), "eos_token_ids": (1, 2)}, "mask_token_id is 2, which is eos_token_id too"),
        ({"modes": (blocks(3, 4),), "pad_token_id": 3}, "mask_token_id is 3, which is pad_token_id too"),
    ],
)
def test_mask_tokens_that_cannot_be(tiny_config: ModelConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config.replace(**changes)


def test_fields_under_their_earlier_names(tiny_config: ModelConfig, tmp_path: Path) -> None:
    from anyorder.checkpoints.config_json import config_from_json, config_to_json
    from anyorder.huggingface.config import AnyOrderConfig

    config = tiny_config.replace(modes=(ANY_ORDER, diffusion(5)), default_mode="diffusion")
    fields = config_to_json(config)
    fields["ways"], fields["default_way"] = fields.pop("modes"), fields.pop("default_mode")
    assert config_from_json(fields) == config
    (tmp_path / "config.json").write_text(json.dumps(fields))
    again = AnyOrderConfig.from_pretrained(tmp_path)
    assert (again.modes, again.default_mode) == (config.modes, "diffusion")
    assert "ways" not in again.to_dict()


def test_modes_in_json_that_cannot_be(tiny_config: ModelConfig, tmp_path: Path) -> None:
    from anyorder.checkpoints.config_json import config_from_json, config_to_json

    fields = config_to_json(tiny_config.replace(modes=(diffusion(5),)))
    assert fields["model_type"] == "anyorder"
    for entry, message in [
        ("diffusion", r"field 'modes' has the entry 'diffusion': give objects with 'name'"),
        ({"name": "diffusion"}, r"field 'modes' has the entry .*, which lacks 'shifted': add it"),
        ({"name": "diffusion", "shifted": False, "mask_token_id": "5"}, r"field 'mask_token_id' is '5': give a whole"),
    ]:
        with pytest.raises(UserError, match=message):
            config_from_json(fields | {"modes": [entry]})
