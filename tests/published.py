"""Folders as masked diffusion models are published, tiny and random, and their networks in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

Json = dict[str, Any]

LLADA: Json = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}, "bias_for_layer_norm": False, "block_group_size": 1,
    "block_type": "llama", "d_model": 32, "embedding_dropout": 0.0, "embedding_size": 96, "eos_token_id": 81,
    "flash_attention": False, "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None,
    "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False,
    "layer_norm_type": "rms", "layer_norm_with_affine": True, "mask_token_id": 90, "max_sequence_length": 64,
    "mlp_hidden_size": 48, "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": 4,
    "n_kv_heads": 4, "n_layers": 2, "pad_token_id": 81, "precision": "amp_bf16", "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05, "rope": True, "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False,
    "transformers_version": "4.46.3", "use_cache": False, "vocab_size": 96, "weight_tying": False,
}  # fmt: skip

DREAM: Json = {
    "architectures": ["DreamModel"], "attention_dropout": 0.0, "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": 81, "eos_token_id": 81, "full_attn_mask": True, "hidden_act": "silu", "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 48, "mask_token_id": 90, "max_position_embeddings": 64,
    "max_window_layers": 28, "model_type": "Dream", "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "pad_token_id": 81, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "float32",
    "transformers_version": "4.46.2", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 96,
}  # fmt: skip


def llada_tensors(config: Json, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names that LLaDA has them."""
    width, inner, heads = config["d_model"], config["mlp_hidden_size"], config["n_heads"]
    shared = width // heads * config["n_kv_heads"]
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    tensors = {
        "wte.weight": matrix(config["embedding_size"], width),
        "ln_f.weight": 1 + matrix(width),
    }
    if not config["weight_tying"]:
        tensors["ff_out.weight"] = matrix(config["embedding_size"], width)
    for layer in range(config["n_layers"]):
        tensors |= {
            f"blocks.{layer}.{name}.weight": matrix(*shape) + (1.0 if name.endswith("norm") else 0.0)
            for name, shape in {
                "q_proj": (width, width), "k_proj": (shared, width), "v_proj": (shared, width),
                "attn_out": (width, width), "attn_norm": (width,), "ff_norm": (width,), "ff_proj": (inner, width),
                "up_proj": (inner, width), "ff_out": (width, inner),
            }.items()
        }  # fmt: skip
    return {f"model.transformer.{name}": tensor for name, tensor in tensors.items()}


def llada_twin(config: Json, tensors: dict[str, Tensor]) -> LlamaForCausalLM:
    """transformers' Llama with these weights; the names are mapped here by hand, not by the data under test."""
    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["embedding_size"], hidden_size=config["d_model"],
            intermediate_size=config["mlp_hidden_size"], num_hidden_layers=config["n_layers"],
            num_attention_heads=config["n_heads"], num_key_value_heads=config["n_kv_heads"],
            rms_norm_eps=config["rms_norm_eps"], tie_word_embeddings=config["weight_tying"],
            max_position_embeddings=config["max_sequence_length"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip
    short = {name.removeprefix("model.transformer."): tensor for name, tensor in tensors.items()}
    state = {
        "model.embed_tokens.weight": short["wte.weight"],
        "model.norm.weight": short["ln_f.weight"],
        "lm_head.weight": short.get("ff_out.weight", short["wte.weight"]),
    }
    for layer in range(config["n_layers"]):
        names = ("q_proj", "k_proj", "v_proj", "attn_out", "attn_norm", "ff_norm", "ff_proj", "up_proj", "ff_out")
        block = {name: short[f"blocks.{layer}.{name}.weight"] for name in names}
        state |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": block["q_proj"],
            f"model.layers.{layer}.self_attn.k_proj.weight": block["k_proj"],
            f"model.layers.{layer}.self_attn.v_proj.weight": block["v_proj"],
            f"model.layers.{layer}.self_attn.o_proj.weight": block["attn_out"],
            f"model.layers.{layer}.input_layernorm.weight": block["attn_norm"],
            f"model.layers.{layer}.post_attention_layernorm.weight": block["ff_norm"],
            f"model.layers.{layer}.mlp.gate_proj.weight": block["ff_proj"],
            f"model.layers.{layer}.mlp.up_proj.weight": block["up_proj"],
            f"model.layers.{layer}.mlp.down_proj.weight": block["ff_out"],
        }
    twin.load_state_dict(state)
    return twin.eval()


def dream_twin(config: Json, seed: int = 0) -> Qwen2ForCausalLM:
    """transformers' Qwen2 of Dream's shape with random weights, biases too."""
    twin = Qwen2ForCausalLM(
        Qwen2Config(
            **{name: config[name] for name in (
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
            )},
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(drawn + (1.0 if "norm" in name else 0.0))
    return twin.eval()


def write_llada(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """A folder of LLaDA's, with its network."""
    config = LLADA | changes
    tensors = llada_tensors(config)
    _write(folder, config, tensors)
    return llada_twin(config, tensors)


def write_dream(folder: Path, **changes: Any) -> Qwen2ForCausalLM:
    """A folder of Dream's, with its network."""
    config = DREAM | changes
    twin = dream_twin(config)
    _write(folder, config, dict(twin.state_dict()))
    return twin


def _write(folder: Path, config: Json, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


@torch.no_grad()
def bidirectional_logits(twin: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of transformers' network when all tokens see each other, `[batch, length, vocabulary]`."""
    twin.config.is_causal = False
    twin.set_attn_implementation("sdpa")
    for layer in twin.model.layers:
        layer.self_attn.is_causal = False
    seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    everyone = seen[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
    positions = (seen.long().cumsum(1) - 1).clamp(min=0)
    return twin(ids, attention_mask=everyone, position_ids=positions, use_cache=False).logits
