"""GGUF, the files of llama.cpp: a network of Llama's form with its tokenizer. They are written, and not read.

Needs the package `gguf`. llama.cpp's own convert_hf_to_gguf.py makes such files of folders that this refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyorder.checkpoints.contents import EMBEDDING, Contents, contents_of
from anyorder.checkpoints.gguf_tokenizer import Vocabulary, vocabulary_of
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.modes import LEFT_TO_RIGHT
from anyorder.model.rope import LinearRotary, Llama3Rotary, Rotary
from anyorder.utils.files import whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

SUFFIX = ".gguf"

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

ROPE_FACTORS = "rope_freqs.weight"
"""What llama.cpp divides the frequencies of rotary embeddings by, one for each pair."""

END_KINDS = ("eos", "eot", "eom")
"""A file has one token of each, and llama.cpp ends a text at any of them."""


def write(model: Llama, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a network as a new GGUF file, whole or not at all.

    Matrices keep their dtype; norms are float32, as in all such files.

    Args:
        model: the network.
        path: the file.
        tokenizer: is written into it; without one, llama.cpp takes and gives token ids alone.

    Raises:
        UserError: the format cannot express the network or the tokenizer, the place is taken, the package `gguf` is
            missing, or see `contents_of`.
    """
    contents = contents_of(model)
    if special := _beyond(contents):
        raise UserError(
            f"{special}: GGUF files are written of plain Llamas that write from left to right, in float32, bfloat16 or "
            "float16, so write a Hugging Face folder instead (llama.cpp's convert_hf_to_gguf.py reads many)."
        )
    words = None if tokenizer is None else vocabulary_of(tokenizer, contents.config.vocab_size)
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need the package gguf: install it (pip install gguf).") from error
    kinds = {
        torch.float32: gguf.GGMLQuantizationType.F32,
        torch.float16: gguf.GGMLQuantizationType.F16,
        torch.bfloat16: gguf.GGMLQuantizationType.BF16,
    }
    with whole_file(Path(path)) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        _add_config(writer, contents)
        _add_tokenizer(writer, contents.config, words)
        for name, weight in tensors(contents).items():
            if weight.dim() == 1:
                writer.add_tensor(name, weight.float().numpy())
            else:
                raw = weight.contiguous().view(torch.uint8).numpy()
                writer.add_tensor(name, raw, raw_dtype=kinds[weight.dtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def tensors(contents: Contents) -> dict[str, Tensor]:
    """The weights under llama.cpp's names and in its order; a head that is the embedding is left out."""
    config = contents.config
    found = {}
    for name, weight in contents.tensors.items():
        if name in OF_NETWORK:
            found[OF_NETWORK[name]] = weight.cpu()
            continue
        number, _, module = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = _pairs_side_by_side(weight, config.head_dim)
        found[f"blk.{number}.{OF_LAYER[module]}.weight"] = weight.cpu()
    if isinstance(config.rotary, Llama3Rotary):
        plain_F = Rotary(theta=config.rotary.theta).frequencies(config.head_dim)
        found[ROPE_FACTORS] = plain_F / config.rotary.frequencies(config.head_dim)
    return found


def _pairs_side_by_side(weight_OI: Tensor, head_dim: int) -> Tensor:
    """llama.cpp's Llama turns outputs (2 f, 2 f + 1) of each head together; here they are (f, f + head_dim / 2)."""
    return weight_OI.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _add_config(writer: Any, contents: Contents) -> None:
    from gguf import LlamaFileType, RopeScalingType

    config = contents.config
    file_types = {
        torch.float32: LlamaFileType.ALL_F32,
        torch.float16: LlamaFileType.MOSTLY_F16,
        torch.bfloat16: LlamaFileType.MOSTLY_BF16,
    }
    writer.add_file_type(file_types[contents.tensors[EMBEDDING].dtype])
    writer.add_vocab_size(config.vocab_size)
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
    if isinstance(config.rotary, LinearRotary):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rotary.factor)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: Any, config: ModelConfig, words: Vocabulary | None) -> None:
    """The vocabulary, and the special tokens: those of the network, where it names any."""
    if words is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(True)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(words.add_eos)
    ends = config.eos_token_ids or tuple(end for end in (words.eos,) if end is not None)
    special = dict(zip(END_KINDS, ends, strict=False)) | {
        "bos": words.bos if config.bos_token_id is None else config.bos_token_id,
        "unk": words.unk,
        "pad": words.pad if config.pad_token_id is None else config.pad_token_id,
    }
    for kind, token_id in special.items():
        if token_id is not None:
            getattr(writer, f"add_{kind}_token_id")(token_id)
    if words.chat_template is not None:
        writer.add_chat_template(words.chat_template)


def _beyond(contents: Contents) -> str | None:
    """What of the network a GGUF file, as written here, cannot hold."""
    config = contents.config
    if config.modes != (LEFT_TO_RIGHT,):
        return f"the network writes {', '.join(mode.name for mode in config.modes)}"
    if type(config.rotary) not in (Rotary, LinearRotary, Llama3Rotary):
        return f"rotary is {type(config.rotary).__name__}"
    if any(kind != LayerKind() for kind in config.layers):
        return "layers have windows, chunks, experts, growing queries or no rotary embedding"
    if config.vision is not None:
        return "the network has vision"
    for name in ("attention", "attention_bias", "attention_output_bias", "mlp_bias"):
        if getattr(config, name):
            return f"{name} is {getattr(config, name)!r}"
    if config.qk_norm != "none":
        return f"qk_norm is {config.qk_norm!r}"
    if len(config.eos_token_ids) > len(END_KINDS):
        return f"texts end at {len(config.eos_token_ids)} different tokens, and a file has room for {len(END_KINDS)}"
    dtype = contents.tensors[EMBEDDING].dtype
    return f"dtype is {dtype}" if dtype == torch.float64 else None
