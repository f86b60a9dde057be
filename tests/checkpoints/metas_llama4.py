"""Meta's folders of Llama 4 with experts and vision, written the slow way, from the rules of Meta's own resharding."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import Rotary
from anyorder.model.vision import VisionConfig
from tests.checkpoints.metas_form import interleaved

VOCABULARY = 2064
"""Sixteen tokens, and the special ones of Llama 4."""


def config(**changes: Any) -> ModelConfig:
    """Experts in every second layer, no rotary in every fourth, and vision."""
    nope = LayerKind(rotary=False, query_scale=QueryScale(strength=0.1, period=4), experts=True)
    chunked = LayerKind(chunk=4)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096, "qk_norm": "weightless",
        "rotary": Rotary(theta=500_000.0), "initializer_range": 0.2, "bos_token_id": 16, "eos_token_ids": (17, 23, 24),
        "layers": (chunked, LayerKind(chunk=4, experts=True), chunked, nope),
        "experts": Experts(
            number=3, chosen=1, width=16, score="sigmoid", weighted="input", shared_width=16,
        ),
        "vision": VisionConfig(
            hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8, output_size=24,
            image_size=56, image_token_id=16 + 92,
        ),
    }  # fmt: skip
    return ModelConfig(**(shape | changes))


def network(**changes: Any) -> Llama:
    """A network in which no two numbers are the same."""
    model = Llama(config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def params(model: Llama, **changes: Any) -> dict[str, Any]:
    """Its `params.json`, nested as Meta's are now and then."""
    config, vision = model.config, model.config.vision
    assert vision is not None
    fields = {
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads, "vocab_size": config.vocab_size, "multiple_of": 2048,
        "ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "norm_eps": config.rms_norm_eps, "rope_theta": 500_000.0,
        "use_scaled_rope": False, "use_qk_norm": True, "attention_chunk_size": 4, "nope_layer_interval": 4,
        "attn_temperature_tuning": True, "floor_scale": 4.0, "attn_scale": 0.1, "max_seq_len": 4096,
        "moe_args": {
            "num_experts": 3, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1, "interleave_moe_layer_step": 2,
        },
        "vision_args": {
            "image_size": {"height": 56, "width": 56}, "patch_size": {"height": 14, "width": 14}, "dim": 32,
            "n_layers": 2, "n_heads": 8, "mlp_ratio": 4.0, "output_dim": 24, "pixel_shuffle_ratio": 0.5,
        },
        "quantization_args": None, "lora_args": None,
    }  # fmt: skip
    return {"model": fields | changes}


def tensors(model: Llama) -> dict[str, Tensor]:
    """All weights under the names of Meta's modules and in its layout."""
    ours, head_dim = model.state_dict(), model.config.head_dim
    found = {
        "tok_embeddings.weight": ours["model.embed_tokens.weight"],
        "norm.weight": ours["model.norm.weight"],
        "output.weight": ours["lm_head.weight"],
        "vision_projection.weight": ours["multi_modal_projector.linear_1.weight"],
    }
    for number, kind in enumerate(model.config.layers):
        here, there = f"model.layers.{number}.", f"layers.{number}."
        found[f"{there}attention_norm.weight"] = ours[f"{here}input_layernorm.weight"]
        found[f"{there}ffn_norm.weight"] = ours[f"{here}post_attention_layernorm.weight"]
        for short in "qkvo":
            weight = ours[f"{here}self_attn.{short}_proj.weight"]
            found[f"{there}attention.w{short}.weight"] = interleaved(weight, head_dim) if short in "qk" else weight
        dense = f"{here}mlp.shared_expert." if kind.experts else f"{here}mlp."
        into = f"{there}feed_forward.{'shared_expert.' * kind.experts}"
        for theirs, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            found[f"{into}{theirs}.weight"] = ours[f"{dense}{name}.weight"]
        if kind.experts:
            gate, up = ours[f"{here}mlp.experts.gate_up_proj"].chunk(2, dim=1)
            found[f"{there}feed_forward.router_DE"] = ours[f"{here}mlp.gate.weight"].T
            found[f"{there}feed_forward.experts.w1"] = gate.transpose(1, 2)
            found[f"{there}feed_forward.experts.w3"] = up.transpose(1, 2)
            found[f"{there}feed_forward.experts.w2"] = ours[f"{here}mlp.experts.down_proj"].transpose(1, 2)
    for name, weight in ours.items():
        if name.startswith("vision_model."):
            found[_of_vision(name)] = weight
    return {name: weight.contiguous().clone() for name, weight in found.items()}


def _of_vision(name: str) -> str:
    if name.startswith("vision_model.vision_adapter"):
        changes = [("vision_model.", "vision_embeddings."), ("fc1", "c_fc"), ("fc2", "c_proj")]
    else:
        changes = [
            ("vision_model.model.layers", "vision_embeddings.vision_encoder.transformer.resblocks"),
            ("vision_model.patch_embedding.", "vision_embeddings.vision_encoder.conv1._"),
            ("vision_model.layernorm_", "vision_embeddings.vision_encoder.ln_"),
            ("vision_model.", "vision_embeddings.vision_encoder."), ("fc1", "c_fc"), ("fc2", "c_proj"),
            ("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2"),
        ]  # fmt: skip
        changes += [(f"self_attn.{short}_proj", f"attn.w{short}") for short in "qkvo"]
    for ours, theirs in changes:
        name = name.replace(ours, theirs)
    return name


LAST = re.compile(r"wo\.weight|(w2|c_proj)\.weight|experts\.w[13]")
FIRST = re.compile(
    r"tok_embeddings|output\.weight|w[13]\.weight|w[qkv]\.(weight|bias)|c_fc|conv1|vision_projection|experts\.w2"
)
"""What Meta's code divides by its last dimension, and by its first (of an expert, where it has experts)."""


def shard(model: Llama, number: int, shards: int) -> dict[str, Any]:
    """What the file of a shard holds, under the names of Meta's modules."""
    parts: dict[str, Any] = {}
    for name, whole in tensors(model).items():
        kv_heads = model.config.num_key_value_heads
        if re.search(r"attention\.w[kv]", name) and shards > kv_heads:  # neighbours have the same head
            part = whole.chunk(kv_heads)[number * kv_heads // shards]
        elif LAST.search(name):
            part = whole.chunk(shards, dim=-1)[number]
        elif FIRST.search(name):
            part = whole.chunk(shards, dim=-2 if whole.dim() == 3 else 0)[number]
        else:
            part = whole
        parts[name] = part.contiguous().clone()
    return parts


def released(parts: dict[str, Any]) -> dict[str, Any]:
    """The same under the names of the released files: queries, keys and values in one, experts below each other."""
    left = dict(parts)
    for layer in {match[1] for name in parts if (match := re.match(r"(layers\.\d+\.)", name))}:
        left[f"{layer}attention.wqkv.weight"] = torch.cat([left.pop(f"{layer}attention.w{k}.weight") for k in "qkv"])
        left[f"{layer}attention.wqkv.layer_norm_weight"] = left.pop(f"{layer}attention_norm.weight")
        left[f"{layer}attention.wqkv._extra_state"] = io.BytesIO(b"scales")
        left[f"{layer}attention.wo._extra_state"] = io.BytesIO(b"scales")
        inner = f"{layer}feed_forward."
        if f"{inner}router_DE" in left:
            left[f"{inner}norm.weight"] = left.pop(f"{layer}ffn_norm.weight")
            for theirs, name in (("w1", "moe_w_in_eD_F"), ("w3", "moe_w_swiglu_eD_F"), ("w2", "moe_w_out_eF_D")):
                left[f"{inner}experts.{name}"] = left.pop(f"{inner}experts.{theirs}").flatten(0, 1)
            for theirs, name in (("w1", "w_in_shared_FD"), ("w3", "w_swiglu_FD"), ("w2", "w_out_shared_DF")):
                left[f"{inner}{name}.weight"] = left.pop(f"{inner}shared_expert.{theirs}.weight")
            left[f"{inner}global_gate_stats_3E"] = torch.ones(3, 3)
            left[f"{inner}running_gate_stats_3E"] = torch.ones(3, 3)
            left[f"{inner}expert_activation_DE"] = torch.ones(64, 3)
        else:
            left[f"{inner}mlp.layer_norm_weight"] = left.pop(f"{layer}ffn_norm.weight")
            left[f"{inner}mlp.fc1_weight"] = torch.cat([left.pop(f"{inner}w1.weight"), left.pop(f"{inner}w3.weight")])
            left[f"{inner}mlp.fc2_weight"] = left.pop(f"{inner}w2.weight")
    return left | {"rope.freqs": torch.ones(4), "vision_embeddings.vision_encoder.freq_cis": torch.ones(4)}


def write(model: Llama, folder: Path, shards: int = 1, form: str = "released", **changes: Any) -> Path:
    """A folder of this many shards, in the "released" form or in that of the "modules"."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params(model, **changes)))
    for number in range(shards):
        parts = shard(model, number, shards)
        torch.save(released(parts) if form == "released" else parts, folder / f"consolidated.{number:02d}.pth")
    return folder
