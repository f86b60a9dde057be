"""Write GGUF files of networks of Llama's form, with their tokenizers.

llama.cpp's own convert_hf_to_gguf.py makes such files of folders that this refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyorder.checkpoints.contents import EMBEDDING, Contents, contents_of
from anyorder.checkpoints.gguf_file import END_KINDS, OF_LAYER, OF_NETWORK, ROPE_FACTORS, side_by_side
from anyorder.checkpoints.tokenizer.gguf import Vocabulary, vocabulary_of
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.modes import LEFT_TO_RIGHT
from anyorder.model.rope import LinearRotary, Llama3Rotary, Rotary
from anyorder.utils.files import whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

DTYPES = {
    torch.float32: ("F32", "ALL_F32"),
    torch.bfloat16: ("BF16", "MOSTLY_BF16"),
    torch.float16: ("F16", "MOSTLY_F16"),
}
"""Of weights that are written, with the names in the package `gguf` of a tensor's type and of a file's."""


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
    vocabulary = None if tokenizer is None else vocabulary_of(tokenizer, contents.config.vocab_size)
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need the package gguf: install it (pip install 'anyorder[gguf]').") from error
    with whole_file(Path(path)) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        _add_config(writer, contents)
        _add_tokenizer(writer, contents.config, vocabulary)
        for name, weight in tensors(contents).items():
            if weight.dim() == 1:
                writer.add_tensor(name, weight.float().numpy())
            else:
                raw = weight.contiguous().view(torch.uint8).numpy()
                writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[DTYPES[weight.dtype][0]])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def tensors(contents: Contents) -> dict[str, Tensor]:
    """Return the weights under llama.cpp's names and in its order; a head that is the embedding is left out."""
    config = contents.config
    found = {}
    for name, weight in contents.tensors.items():
        if name in OF_NETWORK:
            found[OF_NETWORK[name]] = weight.cpu()
            continue
        number, _, module = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = side_by_side(weight, config.head_dim)
        found[f"blk.{number}.{OF_LAYER[module]}.weight"] = weight.cpu()
    if isinstance(config.rotary, Llama3Rotary):
        plain_F = Rotary(theta=config.rotary.theta).frequencies(config.head_dim)
        found[ROPE_FACTORS] = plain_F / config.rotary.frequencies(config.head_dim)
    return found


def _add_config(writer: Any, contents: Contents) -> None:
    from gguf import LlamaFileType, RopeScalingType

    config = contents.config
    writer.add_file_type(LlamaFileType[DTYPES[contents.tensors[EMBEDDING].dtype][1]])
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


def _add_tokenizer(writer: Any, config: ModelConfig, vocabulary: Vocabulary | None) -> None:
    """Return the vocabulary, and the special tokens: those of the network, where it names any."""
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(True)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    ends = config.eos_token_ids or tuple(end for end in (vocabulary.eos,) if end is not None)
    special = dict(zip(END_KINDS, ends, strict=False)) | {
        "bos": vocabulary.bos if config.bos_token_id is None else config.bos_token_id,
        "unk": vocabulary.unk,
        "pad": vocabulary.pad if config.pad_token_id is None else config.pad_token_id,
    }
    for kind, token_id in special.items():
        if token_id is not None:
            getattr(writer, f"add_{kind}_token_id")(token_id)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _beyond(contents: Contents) -> str | None:
    """Return why a GGUF file cannot hold the network; None if it can."""
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
    return None if dtype in DTYPES else f"dtype is {dtype}"
