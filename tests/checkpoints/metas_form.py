"""Meta folders made from a network, written the slow way, and Meta's own computation on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyorder.model.llama import Llama

ROWS, COLUMNS = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2")


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head as 0, K/2, 1, K/2 + 1, ...: what Meta's pairs are when ours are halves."""
    order = [
        head + row for head in range(0, len(weight), head_dim) for pair in range(head_dim // 2)
        for row in (pair, head_dim // 2 + pair)
    ]  # fmt: skip
    return weight[order]


def metas_tensors(model: Llama) -> dict[str, Tensor]:
    """All weights under Meta's names and in its layout."""
    ours = model.state_dict()
    tensors = {
        "tok_embeddings.weight": ours["model.embed_tokens.weight"],
        "norm.weight": ours["model.norm.weight"],
        "output.weight": ours["lm_head.weight"],
        "rope.freqs": torch.zeros(2),
    }
    for number in range(model.config.num_hidden_layers):
        for theirs, name in {
            "attention_norm": "input_layernorm",
            "attention.wq": "self_attn.q_proj",
            "attention.wk": "self_attn.k_proj",
            "attention.wv": "self_attn.v_proj",
            "attention.wo": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w2": "mlp.down_proj",
            "feed_forward.w3": "mlp.up_proj",
        }.items():
            weight = ours[f"model.layers.{number}.{name}.weight"]
            rotated = theirs in ("attention.wq", "attention.wk")
            tensors[f"layers.{number}.{theirs}.weight"] = (
                interleaved(weight, model.config.head_dim) if rotated else weight
            )
    return {name: tensor.clone() for name, tensor in tensors.items()}


def shard_of(name: str, tensor: Tensor, number: int, shards: int, kv_heads: int, embedding_rows: bool) -> Tensor:
    """One shard's part of a tensor."""
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind in ("wk", "wv") and shards > kv_heads:  # neighbours have the same head
        return tensor.chunk(kv_heads)[number * kv_heads // shards].clone()
    if kind in ROWS or (kind == "tok_embeddings" and embedding_rows):
        return tensor.chunk(shards)[number].clone()
    if kind in COLUMNS or kind == "tok_embeddings":
        return tensor.chunk(shards, dim=1)[number].clone()
    return tensor


def metas_params(model: Llama, **changes: Any) -> dict[str, Any]:
    config = model.config
    params = {
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads, "vocab_size": config.vocab_size, "multiple_of": 256,
        "ffn_dim_multiplier": 1.3, "norm_eps": config.rms_norm_eps, "rope_theta": config.rotary.theta,
    }  # fmt: skip
    return {name: value for name, value in (params | changes).items() if value != "absent"}


def write_metas_folder(
    model: Llama, folder: Path, shards: int = 1, embedding_rows: bool = False, **changes: Any
) -> Path:  # fmt: skip
    """Writes `params.json` (with changes; "absent" leaves a field out) and the shards."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(metas_params(model, **changes)))
    tensors = metas_tensors(model)
    for number in range(shards):
        part = {
            name: shard_of(name, tensor, number, shards, model.config.num_key_value_heads, embedding_rows)
            for name, tensor in tensors.items()
        }
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    return folder


def metas_logits(folder: Path, token_ids: list[int], frequencies: Tensor) -> Tensor:
    """What Meta's code computes from a folder with one shard: rotation of neighbouring pairs as complex numbers."""
    params = json.loads((folder / "params.json").read_text())
    weights = torch.load(folder / "consolidated.00.pth", weights_only=True)
    heads, kv_heads = params["n_heads"], params["n_kv_heads"] or params["n_heads"]
    turns_LF = torch.polar(torch.ones(()), torch.outer(torch.arange(len(token_ids)), frequencies))

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weights[f"{name}.weight"]

    def rotated(x_LHK: Tensor) -> Tensor:
        pairs_LHF = torch.view_as_complex(x_LHK.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs_LHF * turns_LF[:, None]).flatten(2)

    hidden = weights["tok_embeddings.weight"][token_ids]
    for layer in range(params["n_layers"]):
        w = {name: weights.get(f"layers.{layer}.attention.{name}.weight") for name in ("wq", "wk", "wv", "wo")}
        rows = norm(hidden, f"layers.{layer}.attention_norm")
        q = rotated((rows @ w["wq"].T).unflatten(-1, (heads, -1)))
        k = rotated((rows @ w["wk"].T).unflatten(-1, (kv_heads, -1))).repeat_interleave(heads // kv_heads, 1)
        v = (rows @ w["wv"].T).unflatten(-1, (kv_heads, -1)).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        scores += torch.full(scores.shape[1:], -torch.inf).triu(1)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        hidden = hidden + mixed @ w["wo"].T
        rows = norm(hidden, f"layers.{layer}.ffn_norm")
        w = {name: weights[f"layers.{layer}.feed_forward.{name}.weight"] for name in ("w1", "w2", "w3")}
        hidden = hidden + (torch.nn.functional.silu(rows @ w["w1"].T) * (rows @ w["w3"].T)) @ w["w2"].T
    return norm(hidden, "norm") @ weights["output.weight"].T
