"""GGUF, the files of llama.cpp: a plain Llama is written, without a vocabulary, to be handed token ids.

Needs the package `gguf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.checkpoints.contents import contents_of
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.rope import Rotary
from anyorder.utils.files import whole_file
from anyorder.ways import LEFT_TO_RIGHT

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

OF_NETWORK = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of modules in `model.layers.N.` and in `blk.N.`."""


def write(model: Llama, path: str | Path) -> None:
    """Writes a network as a new GGUF file, in bfloat16 or else float32; whole or not at all.

    Raises:
        UserError: the network is more than a plain Llama, the place is taken, the package `gguf` is missing, or see
            `contents_of`.
    """
    config = contents_of(model).config
    if special := _beyond_llama(config):
        raise UserError(f"{special}: llama.cpp's Llama is plain, so write a Hugging Face folder instead.")
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need the package gguf: install it (pip install gguf).") from error
    with whole_file(Path(path)) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("no_vocab")
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rotary.theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        for name, weight in tensors(model).items():
            if weight.dtype == torch.bfloat16 and weight.dim() > 1:
                raw = weight.contiguous().view(torch.uint16).numpy()
                writer.add_tensor(name, raw.view("uint8"), raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(name, weight.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def tensors(model: Llama) -> dict[str, Tensor]:
    """The weights under llama.cpp's names and in its order; a head that is the embedding is left out."""
    contents = contents_of(model)
    found = {}
    for name, weight in contents.tensors.items():
        if name in OF_NETWORK:
            found[OF_NETWORK[name]] = weight.cpu()
            continue
        number, _, module = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = _pairs_side_by_side(weight, contents.config.head_dim)
        found[f"blk.{number}.{OF_LAYER[module]}.weight"] = weight.cpu()
    return found


def _pairs_side_by_side(weight_OI: Tensor, head_dim: int) -> Tensor:
    """llama.cpp's Llama turns outputs (2 f, 2 f + 1) of each head together; here they are (f, f + head_dim / 2)."""
    return weight_OI.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _beyond_llama(config: ModelConfig) -> str | None:
    """What the network has that llama.cpp's Llama, as written here, has not."""
    if config.ways != (LEFT_TO_RIGHT,):
        return f"the network writes {', '.join(way.name for way in config.ways)}"
    if type(config.rotary) is not Rotary:
        return f"rotary is {type(config.rotary).__name__}"
    if any(kind != LayerKind() for kind in config.layers):
        return "layers have windows, chunks or no rotary embedding"
    for name in ("attention", "attention_bias", "attention_output_bias", "mlp_bias"):
        if getattr(config, name):
            return f"{name} is {getattr(config, name)!r}"
    return None if config.qk_norm == "none" else f"qk_norm is {config.qk_norm!r}"
