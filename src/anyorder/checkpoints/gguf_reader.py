"""Read GGUF files: networks of the architectures llama, qwen2, qwen3 and smollm3, of any type of quantization.

A file is opened by the package `gguf`, which maps it into memory, so that only headers are read before weights are
wanted. Quantized weights become float32, tensor by tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyorder.checkpoints.config_json import config_from_json
from anyorder.checkpoints.gguf_file import END_KINDS, OF_LAYER, OF_NETWORK, ROPE_FACTORS, GGUFFile, half_apart
from anyorder.checkpoints.weights import Checkpoint, listed
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.rope import Llama3Rotary, Rotary
from anyorder.utils.annotations import shown

PAIRED = ("llama", "smollm3")
"""Architectures whose files have outputs of queries and keys side by side that are rotated together."""

NOPE_INTERVAL = {"smollm3": 4}
"""Every so many layers one has no rotary embedding, which llama.cpp knows and the files do not say."""

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")

BEYOND = (
    "expert_count", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "residual_scale",
    "embedding_scale", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "attention.sliding_window",
)  # fmt: skip
"""Fields that change a network in ways that are not read, unless they are 0."""

LLAMA3_BANDS: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What Llama 3.1 and 3.2 have, of whose rotary embeddings a file holds the resulting frequencies alone."""


def read(path: Path) -> Checkpoint:
    """Open a GGUF file: configuration and headers.

    Args:
        path: the file.

    Raises:
        UserError: the file is damaged or of another architecture, or the package `gguf` is missing.
    """
    file = GGUFFile(path)
    config = _config(file)
    names = {theirs: ours for ours, theirs in OF_NETWORK.items()}
    places: dict[str, Any] = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FACTORS:
            continue
        _, _, rest = name.partition(".")
        number, _, module = rest.partition(".")
        module, _, kind = module.rpartition(".")
        ours = {theirs: ours for ours, theirs in OF_LAYER.items()}.get(module)
        known = name.startswith("blk.") and ours is not None
        places[f"model.layers.{number}.{ours}.{kind}" if known else names.get(name, name)] = tensor
    paired = file.architecture in PAIRED
    # Norms and biases are float32 in all files, whatever they were.
    dtype = file.dtype_of(file.tensors["token_embd.weight"])

    def weight(name: str) -> Tensor:
        tensor = file.weight(places[name]).to(dtype)
        turned = paired and name.rpartition(".")[0].endswith(("q_proj", "k_proj"))
        return half_apart(tensor, config.head_dim) if turned else tensor

    return Checkpoint(
        path=path,
        config=config,
        shapes={name: tuple(map(int, reversed(tensor.shape))) for name, tensor in places.items()},
        dtypes=dict.fromkeys(places, dtype),
        read=weight,
    )


def _config(file: GGUFFile) -> ModelConfig:
    """Return the configuration, by way of the `config.json` that a folder of the network would have."""
    arch = file.architecture
    if arch not in ARCHITECTURES:
        raise UserError(
            f"{str(file.path)!r} is of the architecture {shown(arch)}: of GGUF files this version reads "
            f"{listed(ARCHITECTURES)}."
        )
    for name in BEYOND:
        if value := file.field(f"{arch}.{name}"):
            raise UserError(
                f"{str(file.path)!r} has {arch}.{name} {shown(value)}, which is not read from GGUF files: give the "
                "network's Hugging Face folder."
            )
    if "token_embd.weight" not in file.tensors:
        raise file.damaged("it has no tensor token_embd.weight; of a file in parts, give a whole one")
    heads = file.required(f"{arch}.attention.head_count")
    hidden = file.required(f"{arch}.embedding_length")
    has = file.tensors.__contains__
    fields = {
        "model_type": arch,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[-1]),
        "hidden_size": hidden,
        "intermediate_size": file.required(f"{arch}.feed_forward_length"),
        "num_hidden_layers": file.required(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.field(f"{arch}.attention.head_count_kv") or heads,
        "head_dim": file.field(f"{arch}.attention.key_length")
        or file.field(f"{arch}.rope.dimension_count")
        or (hidden // heads if isinstance(heads, int) and heads > 0 else None),
        "max_position_embeddings": file.required(f"{arch}.context_length"),
        "rms_norm_eps": file.required(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file),
        "tie_word_embeddings": not has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "bos_token_id": file.field("tokenizer.ggml.bos_token_id"),
        "pad_token_id": file.field("tokenizer.ggml.padding_token_id"),
        "eos_token_id": _ends(file),
    }
    if arch in NOPE_INTERVAL:
        fields["no_rope_layer_interval"] = NOPE_INTERVAL[arch]
    if arch == "qwen2":  # which always has biases
        del fields["attention_bias"]
    config = config_from_json(fields)
    return config if ROPE_FACTORS not in file.tensors else config.replace(rotary=_llama3(file, config))


def _ends(file: GGUFFile) -> list[int] | None:
    ends = [file.field(f"tokenizer.ggml.{kind}_token_id") for kind in END_KINDS]
    return list(dict.fromkeys(end for end in ends if end is not None)) or None


def _rope(file: GGUFFile) -> dict[str, Any]:
    arch = file.architecture
    rope = {"rope_type": "default", "rope_theta": file.field(f"{arch}.rope.freq_base") or 10_000.0}
    kind = file.field(f"{arch}.rope.scaling.type") or "none"
    factor = file.field(f"{arch}.rope.scaling.factor")
    if kind == "none" or factor in (None, 0, 1.0):
        return rope
    rope |= {"rope_type": kind, "factor": factor}
    trained = file.field(f"{arch}.rope.scaling.original_context_length")
    return rope | ({} if trained is None else {"original_max_position_embeddings": trained})


def _llama3(file: GGUFFile, config: ModelConfig) -> Rotary:
    """Find the settings of Llama 3's rotary embedding from the divisors of its frequencies."""
    factors_F = file.weight(file.tensors[ROPE_FACTORS]).double()
    plain = config.rotary
    found = Llama3Rotary(theta=plain.theta, factor=float(factors_F.max()), **LLAMA3_BANDS)
    expected_F = plain.frequencies(config.head_dim) / found.frequencies(config.head_dim)
    if type(plain) is not Rotary or len(factors_F) != len(expected_F) or not torch.allclose(
        factors_F, expected_F.double(), rtol=1e-4
    ):  # fmt: skip
        raise UserError(
            f"{str(file.path)!r} has frequencies of rotary embeddings ({ROPE_FACTORS}) that are not those of Llama "
            "3.1 or 3.2: give the network's Hugging Face folder."
        )
    return found
