"""The whole network again for one sample, slow and obvious: no cache, no batch, no kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anyorder.model.config import LayerKind
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama

Sees = Callable[[LayerKind, int, int], bool]
"""Whether, in layers of this kind, a row sees a key; both by their number."""

Weigh = Callable[[Tensor, int, list[int]], Tensor]
"""From the scores of a row towards the keys that it sees, with the numbers of row and keys, to their shares."""


def softmax(scores: Tensor, row: int, keys: list[int]) -> Tensor:
    return scores.softmax(0)


def oracle_logits(
    model: Llama, ids: Sequence[int], position: Sequence[float], sees: Sees, n_keys: int, weigh: Weigh = softmax,
    queries: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`[rows, vocabulary]`: each row looks at those of the first `n_keys` rows that `sees` shows it.

    `queries`, `[more rows, hidden]`, are rows behind those of the ids.
    """
    config = model.config
    weights = {name: weight.detach().double() for name, weight in model.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        out = x @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    def norm(x: Tensor, name: str) -> Tensor:
        return rms(x) * weights[f"{name}.weight"]

    def rms(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()

    def turn(head: Tensor, kind: LayerKind) -> Tensor:
        """Frequency f of a head is the complex number of its entries f and f + head_dim / 2."""
        half = config.head_dim // 2
        rotary = config.rotary if isinstance(kind.rotary, bool) else kind.rotary
        angle = torch.tensor(position, dtype=torch.float64).unsqueeze(1) * rotary.frequencies(config.head_dim)
        turned = torch.complex(head[:, :half], head[:, half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), 1)

    rows = weights["model.embed_tokens.weight"][list(ids)]
    rows = rows if queries is None else torch.cat((rows, queries.double()))
    shared = config.num_attention_heads // config.num_key_value_heads
    for number, kind in enumerate(config.layers):
        layer = f"model.layers.{number}"
        x = norm(rows, f"{layer}.input_layernorm")
        q, k, v = (linear(x, f"{layer}.self_attn.{name}_proj").split(config.head_dim, 1) for name in "qkv")
        heads = []
        for head in range(config.num_attention_heads):
            query, key, value = q[head], k[head // shared], v[head // shared]
            if config.qk_norm == "learned":
                query, key = norm(query, f"{layer}.self_attn.q_norm"), norm(key, f"{layer}.self_attn.k_norm")
            if kind.rotary:
                query, key = turn(query, kind), turn(key, kind)
            if config.qk_norm == "weightless" and kind.rotary:
                query, key = rms(query), rms(key)
            if kind.query_scale is not None:
                scale = kind.query_scale
                periods = torch.tensor([math.floor((at + scale.offset) / scale.period) for at in position])
                query = query * (1 + scale.strength * (1 + periods.double()).log()).unsqueeze(1)
            out = torch.zeros_like(query)
            for row in range(len(rows)):
                visible = [other for other in range(n_keys) if sees(kind, row, other)]
                if visible:
                    scores = query[row] @ key[visible].T / config.head_dim**0.5
                    out[row] = weigh(scores, row, visible) @ value[visible]
            heads.append(out)
        rows = rows + linear(torch.cat(heads, 1), f"{layer}.self_attn.o_proj")
        x = norm(rows, f"{layer}.post_attention_layernorm")
        if kind.experts:
            rows = rows + mixture(x, config.experts, f"{layer}.mlp", weights)
        else:
            rows = rows + linear(
                silu(linear(x, f"{layer}.mlp.gate_proj")) * linear(x, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj"
            )
    return norm(rows, "model.norm") @ weights["lm_head.weight"].T


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def mixture(rows: Tensor, experts: Experts, layer: str, weights: dict[str, Tensor]) -> Tensor:
    """Each row `[rows, hidden]` through every chosen expert, one after another; without blocks."""
    logits = rows @ weights[f"{layer}.gate.weight"].T
    scores = logits.softmax(1) if experts.score == "softmax" else logits.sigmoid()
    bias = weights.get(f"{layer}.gate.expert_bias", torch.zeros(experts.number, dtype=torch.float64))
    in_group = experts.number // experts.groups
    out = torch.zeros_like(rows)
    for row, (x, score) in enumerate(zip(rows, scores, strict=True)):
        biased = (score + bias).tolist()
        groups = [biased[first : first + in_group] for first in range(0, experts.number, in_group)]
        best = sorted(range(experts.groups), key=lambda group: -sum(sorted(groups[group])[-2:]))
        allowed = [
            expert
            for group in best[: experts.kept_groups]
            for expert in range(group * in_group, (group + 1) * in_group)
        ]
        chosen = sorted(allowed, key=lambda expert: -biased[expert])[: experts.chosen]
        weight = {expert: biased[expert] if experts.bias == "weight" else float(score[expert]) for expert in chosen}
        total = sum(weight.values()) if experts.normalise else 1.0
        for expert in chosen:
            share = weight[expert] / total * experts.scale
            read = share * x if experts.weighted == "input" else x
            gate, up = (weights[f"{layer}.experts.gate_up_proj"][expert] @ read).chunk(2)
            made = weights[f"{layer}.experts.down_proj"][expert] @ (silu(gate) * up)
            out[row] += made if experts.weighted == "input" else share * made
        if experts.shared_width:
            gate, up = (weights[f"{layer}.shared_expert.{name}_proj.weight"] @ x for name in ("gate", "up"))
            out[row] += weights[f"{layer}.shared_expert.down_proj.weight"] @ (silu(gate) * up)
    return out


def narrowed(kind: LayerKind, query: int, key: int) -> bool:
    """Whether a layer of this kind lets the position `query` see the position `key` at all."""
    if kind.window is not None and query - key >= kind.window:
        return False
    return kind.chunk is None or query // kind.chunk == key // kind.chunk
