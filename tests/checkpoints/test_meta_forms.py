"""Meta's folders in the forms of its training code: other names, fused tensors, and the dense networks of Llama 4."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Llama4ForCausalLM, Llama4TextConfig

from anyorder.checkpoints import load_model, read_checkpoint, save_model
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Llama3Rotary
from tests.checkpoints.metas_form import metas_params, metas_tensors, shard_of, write_metas_folder
from tests.checkpoints.test_meta import assert_same_weights, change, change_params

FORMS: dict[str, dict[str, str | tuple[str, ...]]] = {
    "fused": {
        "attention.wqkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
        "attention.wqkv.layer_norm_weight": "attention_norm.weight",
        "feed_forward.mlp.fc1_weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
        "feed_forward.mlp.fc2_weight": "feed_forward.w2.weight",
        "feed_forward.mlp.layer_norm_weight": "ffn_norm.weight",
    },
    "fused attention": {
        "attention.wqkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
        "feed_forward.norm.weight": "ffn_norm.weight",
    },
    "shared": {
        "feed_forward.w_in_shared_FD.weight": "feed_forward.w1.weight",
        "feed_forward.w_swiglu_FD.weight": "feed_forward.w3.weight",
        "feed_forward.w_out_shared_DF.weight": "feed_forward.w2.weight",
        "feed_forward.mlp.layer_norm.weight": "ffn_norm.weight",
    },
}
"""Of tensors of a layer: the name in the file, and what is in it, one below the other."""


def in_form(tensors: dict[str, Tensor], form: str, layers: int) -> dict[str, Any]:
    """The tensors of a shard as this form has them."""
    left: dict[str, Any] = dict(tensors)
    for layer in range(layers):
        for name, parts in FORMS[form].items():
            names = [f"layers.{layer}.{part}" for part in ([parts] if isinstance(parts, str) else parts)]
            left[f"layers.{layer}.{name}"] = torch.cat([left.pop(each) for each in names])
        left[f"layers.{layer}.attention.wqkv._extra_state"] = io.BytesIO(b"scales")
        left[f"layers.{layer}.feed_forward.mlp._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    return left


def write_in_form(model: Llama, folder: Path, form: str, shards: int, **changes: Any) -> None:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(metas_params(model, **changes)))
    for number in range(shards):
        part = {
            name: shard_of(name, tensor, number, shards, model.config.num_key_value_heads, True)
            for name, tensor in metas_tensors(model).items()
        }
        torch.save(in_form(part, form, model.config.num_hidden_layers), folder / f"consolidated.{number:02d}.pth")


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_names_of_the_training_code(tiny_config: ModelConfig, tmp_path: Path, form: str, shards: int) -> None:
    model = Llama(tiny_config)  # with four shards there are more than key-value heads
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    write_in_form(model, tmp_path / "llama", form, shards)
    assert_same_weights(load_model(tmp_path / "llama", device="cpu"), model)
    save_model(load_model(tmp_path / "llama", device="cpu"), tmp_path / "saved")
    assert_same_weights(load_model(tmp_path / "saved", device="cpu"), model)


def test_a_fused_tensor_that_does_not_fit(tiny_config: ModelConfig, tmp_path: Path) -> None:
    write_in_form(Llama(tiny_config), tmp_path / "llama", "fused", 2)
    (tmp_path / "llama" / "consolidated.01.pth").unlink()  # the other has half of the queries
    with pytest.raises(UserError, match=r"wqkv.weight' in .* has shape \[64, 64\], which is not 64 rows of queries"):
        load_model(tmp_path / "llama")
    write_in_form(Llama(tiny_config), tmp_path / "again", "fused", 1)
    file = tmp_path / "again" / "consolidated.00.pth"
    change_fused = torch.load(file, weights_only=False) | {"layers.0.feed_forward.mlp.fc1_weight": torch.zeros(3, 64)}
    torch.save(change_fused, file)
    with pytest.raises(UserError, match=r"fc1_weight' in .* has shape \[3, 64\], which is not two matrices"):
        load_model(tmp_path / "again")


def test_a_tensor_under_two_names(tiny_config: ModelConfig, tmp_path: Path) -> None:
    folder = write_metas_folder(Llama(tiny_config), tmp_path / "llama")
    change(folder / "consolidated.00.pth", **{"layers.0.feed_forward.norm.weight": torch.ones(64)})
    with pytest.raises(UserError, match=r"tensor 'layers.0.ffn_norm.weight' is twice in .*: delete one of them"):
        load_model(folder)


@pytest.mark.parametrize("key", [3, None, (1, 2), b"norm.weight"])
def test_keys_that_are_no_names(tiny_config: ModelConfig, tmp_path: Path, key: Any) -> None:
    folder = write_metas_folder(Llama(tiny_config), tmp_path / "llama")
    torch.save(torch.load(folder / "consolidated.00.pth") | {key: torch.ones(2)}, folder / "consolidated.00.pth")
    with pytest.raises(UserError, match=r"has a tensor named .*, which is no text: give the weights alone"):
        load_model(folder)


# ------------------------------------------------------------------------------------------------ Llama 4


def llama4(qk_norm: bool, interval: int, chunk: int | None) -> Llama4ForCausalLM:
    """transformers' Llama 4 without experts."""
    config = Llama4TextConfig(
        vocab_size=128, hidden_size=32, intermediate_size=24, intermediate_size_mlp=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, moe_layers=[],
        use_qk_norm=qk_norm, no_rope_layer_interval=interval, attention_chunk_size=chunk,
        attn_temperature_tuning=False, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    twin = Llama4ForCausalLM(config).eval()
    for name, parameter in twin.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return twin


def write_llama4(twin: Llama4ForCausalLM, folder: Path, shards: int, **changes: Any) -> None:
    """Under Meta's names; Llama 4 has the same pairs of rows in both forms."""
    config = twin.config
    names = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", "feed_forward.gate_proj": "feed_forward.w1",
        "feed_forward.up_proj": "feed_forward.w3", "feed_forward.down_proj": "feed_forward.w2",
    }  # fmt: skip
    state = twin.state_dict()
    tensors = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        for theirs, metas in names.items():
            tensors[f"layers.{layer}.{metas}.weight"] = state[f"model.layers.{layer}.{theirs}.weight"]
    folder.mkdir()
    for number in range(shards):
        part = {name: shard_of(name, tensor, number, shards, 2, True) for name, tensor in tensors.items()}
        part = {name: tensor.clone() for name, tensor in part.items()}
        torch.save(in_form(part, "fused", config.num_hidden_layers), folder / f"consolidated.{number:02d}.pth")
    params = {
        "dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "vocab_size": 128, "multiple_of": 8,
        "ffn_exp": 4.0, "norm_eps": 1e-5, "rope_theta": 500_000.0, "use_scaled_rope": False, "moe_args": None,
        "use_qk_norm": config.use_qk_norm, "attention_chunk_size": config.attention_chunk_size,
        "nope_layer_interval": config.no_rope_layer_interval, "attn_temperature_tuning": False, "floor_scale": 8192.0,
        "attn_scale": 0.1, "vision_args": None, "quantization_args": None, "lora_args": None, "max_seq_len": 64,
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps({"model": params | changes}))


@pytest.mark.parametrize(
    ("qk_norm", "interval", "chunk", "shards"), [(True, 4, 5, 1), (False, 2, 7, 2), (True, 2, None, 1)]
)
def test_llama_4_without_experts(qk_norm: bool, interval: int, chunk: int, shards: int, tmp_path: Path) -> None:
    twin = llama4(qk_norm, interval, chunk)
    write_llama4(twin, tmp_path / "llama", shards)
    ours = load_model(tmp_path / "llama", device="cpu")
    assert ours.config.layers[interval - 1] == LayerKind(rotary=False)
    assert ours.config.layers[0] == LayerKind(chunk=chunk)
    ids = torch.randint(128, (2, 23))
    with torch.no_grad():
        expected = twin(ids).logits
        assert (ours(ids).logits - expected).abs().max() < 1e-5 * expected.abs().max()
    save_model(ours, tmp_path / "saved")
    assert load_model(tmp_path / "saved", device="cpu").config == ours.config


def test_fields_of_llama_4(tiny_config: ModelConfig, tmp_path: Path) -> None:
    folder = write_metas_folder(Llama(tiny_config), tmp_path / "llama")
    change_params(folder, use_scaled_rope=True, use_qk_norm=False)
    assert read_checkpoint(folder).config.rotary == Llama3Rotary(
        theta=10_000.0, factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=8192
    )
    change_params(folder, rope_scaling_factor=8, rope_high_freq_factor=4.0)
    rotary = read_checkpoint(folder).config.rotary
    assert isinstance(rotary, Llama3Rotary)
    assert (rotary.factor, rotary.high_freq_factor) == (8, 4.0)
    # Without layers that have no rotary, nothing grows.
    change_params(folder, attn_temperature_tuning=True)
    assert load_model(folder, device="cpu").config.layers == (LayerKind(),) * 2


VISION = {
    "image_size": {"height": 56, "width": 56}, "patch_size": {"height": 14, "width": 14}, "dim": 16, "n_layers": 2,
    "n_heads": 2, "mlp_ratio": 4.0, "output_dim": 24, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor_scale": 0.5}, "field 'floor_scale' is 0.5: give a whole number of positions"),
        ({"moe_args": {}}, "field 'moe_args' is {}, which lacks 'num_experts': add it"),
        ({"moe_args": {"num_experts": 0}}, "field 'num_experts' of moe_args is 0: give a whole number above 0"),
        ({"moe_args": {"experts": 16}}, "field 'moe_args' is {'experts': 16}: give an object with 'num_experts', "),
        ({"vision_args": 3}, "field 'vision_args' is 3: give an object with 'image_size', "),
        ({"vision_args": VISION | {"dim": "wide"}}, "field 'dim' is 'wide': give a whole number"),
        ({"vision_args": VISION | {"patch_size": {"height": 14, "width": 7}}}, "field 'patch_size' of vision_args is"),
        ({"vision_args": VISION | {"pixel_shuffle_ratio": 0.4}}, "field 'pixel_shuffle_ratio' of vision_args is 0.4: "),
        ({"quantization_args": {"scheme": "int4"}}, "field 'quantization_args' is .*: give the weights as they were"),
        ({"lora_args": {"rank": 16}}, "field 'lora_args' is .*: give the weights with the adapter merged"),
        ({"head_dim": 32}, "field 'head_dim' is 32: Meta's code takes dim // n_heads, which is 16, so give that"),
        ({"nope_layer_interval": 0}, "field 'nope_layer_interval' is 0: give a number above 0"),
        ({"nope_layer_interval": 2.5}, "field 'nope_layer_interval' is 2.5: give a whole number"),
        ({"attention_chunk_size": -8192}, "field 'attention_chunk_size' is -8192: give a number above 0"),
        ({"use_qk_norm": "yes"}, "field 'use_qk_norm' is 'yes': give true or false"),
        ({"n_layers": 10**7}, "field 'n_layers' is 10000000: give at most 4,096"),
        ({"dim": 2**62}, "field 'dim' is 4611686018427387904: give at most"),
        ({"norm_eps": 1e300}, r"field 'norm_eps' is 1e\+300: give at most"),
        ({"surprise": 1}, "field 'surprise' is unknown: this version reads Llama 1 to 4"),
    ],
)  # fmt: skip
def test_fields_that_are_refused(
    tiny_config: ModelConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_metas_folder(Llama(tiny_config), tmp_path / "llama")
    change_params(folder, **changes)
    with pytest.raises(UserError, match=f"^'.*params.json': {message}"):
        load_model(folder)
